#!/usr/bin/env bash
# Fetches the evaluation texts that no Python package has: six novels of Jane Austen, Moby Dick
# and An Anarchist FAQ, as UTF-8 text files. They come from Debian packages, so this needs
# apt-get and dpkg-deb. Quick when all files are there; a file appears only when it is complete.
#
# QM_VLLM_CACHE=/folder   where to put them (texts/ in it); default: ~/.cache/qm_vllm
# PYTHON=/path/to/python  an interpreter with the package rdata; default: the checkout's .venv
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cache="${QM_VLLM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/qm_vllm}"
folder="$cache/texts"
files=(sense_and_sensibility pride_and_prejudice mansfield_park emma northanger_abbey
  persuasion moby_dick anarchist_faq)
packages=(r-cran-janeaustenr r-cran-tokenizers anarchism)

say() { printf 'fetch_texts: %s\n' "$*" >&2; }
die() { printf 'fetch_texts: %s\n' "$*" >&2; exit 1; }

missing=()
for name in "${files[@]}"; do
  [ -s "$folder/$name.txt" ] || missing+=("$name.txt")
done
if [ "${#missing[@]}" -eq 0 ]; then
  say "all texts are in $folder"
  exit 0
fi

by_hand() {
  printf '%s\n' "To do it by hand, put these UTF-8 text files into $folder:" \
    "  ${missing[*]}" \
    "The novels: paragraphs with a blank line between them (Project Gutenberg has all seven)." \
    "anarchist_faq.txt: the FAQ's sections A to J, each under a line like '# A.1 What ...?'." \
    "Without them the evaluation runs on the essays alone." >&2
}
for tool in apt-get dpkg-deb; do
  if ! command -v "$tool" >/dev/null; then
    say "$tool is not on this machine, so the Debian packages cannot be fetched."
    by_hand
    exit 1
  fi
done
python="${PYTHON:-$root/.venv/bin/python}"
[ -x "$python" ] || die "$python does not run; run scripts/setup.sh first or name an" \
  "interpreter with PYTHON=/path/to/python."
"$python" -c 'import rdata' 2>/dev/null || die "$python has no package rdata (it reads the" \
  "novels' R data); install it with: $root/.venv/bin/uv pip install --python $python rdata"

mkdir -p "$folder" || die "cannot make $folder; set QM_VLLM_CACHE to a folder that can be written."
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
for package in "${packages[@]}"; do
  say "downloading $package"
  if ! (cd "$work" && apt-get download -q "$package" >"$work/log" 2>&1); then
    cat "$work/log" >&2
    say "apt-get could not download $package; 'apt-get update' may help."
    by_hand
    exit 1
  fi
  dpkg-deb -x "$work/$package"_*.deb "$work/root" || die "cannot unpack $package"
done
"$python" "$root/eval/qm_vllm_eval/convert_texts.py" "$work/root" "$folder" ||
  die "the texts could not be converted, for the reason above."
say "done: $folder"
