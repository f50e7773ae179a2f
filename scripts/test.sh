#!/usr/bin/env bash
# Sets up .venv if need be and runs the checks. Without arguments: ruff, mypy, then the
# end-to-end, integration and unit tests in that order, and some of them on the oldest vLLM that is
# supported, in an environment of its own. With arguments: pytest with these alone, in .venv.
set -euo pipefail

here="$PWD"
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
bash "$root/scripts/setup.sh"

export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"
export VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1
export VLLM_CPU_KVCACHE_SPACE="${VLLM_CPU_KVCACHE_SPACE:-1}"
export TOKENIZERS_PARALLELISM="${TOKENIZERS_PARALLELISM:-false}"
python="$root/.venv/bin/python"

if [ "$#" -gt 0 ]; then
  cd "$here"
  exec "$python" -m pytest -c "$root/pyproject.toml" "$@"
fi

cd "$root"
echo "test: ruff"
"$python" -m ruff check .
echo "test: mypy"
"$python" -m mypy
folders=()
for folder in tests/e2e tests/integration tests/unit; do
  [ -d "$folder" ] && folders+=("$folder")
done
# Two workers of one thread each: most of the time goes into starting engines, which takes one.
# Files of few slow tests come first, so that no worker is left alone with one at the end.
workers="${QM_VLLM_TEST_WORKERS:-2}"
export OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind
echo "test: pytest ${folders[*]}, $workers workers"
status=0
"$python" -m pytest -n "$workers" --dist loadfile --no-loadscope-reorder "${folders[@]}" ||
  status=1
echo "test: the oldest vLLM"
bash scripts/test_versions.sh --short 0.31 || status=1
exit "$status"
