#!/usr/bin/env bash
# Makes one environment per peer package of the quality bench, next to the project's own, because
# each peer needs another transformers release than vLLM. Run scripts/setup.sh first. Quick when
# nothing has changed; harmless to run any number of times.
#
# scripts/setup_peers.sh [kvpress] [llmlingua]   default: both
# QM_VLLM_PEERS=/path   folder for the environments, default: .peers in the checkout
# UV_FIND_LINKS / PIP_FIND_LINKS   folders with wheels; a torch CPU wheel there is used
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"
source scripts/wheels.sh
peers="${QM_VLLM_PEERS:-$root/.peers}"
uv="$root/.venv/bin/uv"
base="$root/.venv/bin/python"

say() { printf 'setup-peers: %s\n' "$*" >&2; }
die() { printf 'setup-peers: %s\n' "$*" >&2; exit 1; }

[ -x "$uv" ] || die ".venv/bin/uv is not there; run scripts/setup.sh first."
[ "$#" -gt 0 ] || set -- kvpress llmlingua
for peer in "$@"; do
  [ -e "constraints-peers-$peer.txt" ] || die "unknown peer '$peer'; known: kvpress, llmlingua."
done

links="$(wheel_folders "$base")"
export UV_FIND_LINKS="$links"
[ -n "$links" ] || unset UV_FIND_LINKS

make_peer() {
  local peer="$1" pins="constraints-peers-$1.txt" venv="$peers/$1" wanted version source=()
  wanted="$({
    cat pyproject.toml eval/pyproject.toml overrides.txt scripts/setup_peers.sh scripts/wheels.sh "$pins"
    printf '%s\n' "$root"
    "$base" -V
  } | sha256sum | cut -d' ' -f1)"
  if [ "$(cat "$venv/.qm-vllm-setup" 2>/dev/null || true)" = "$wanted" ] &&
    "$venv/bin/python" -c '' 2>/dev/null; then
    return
  fi
  say "making $venv"
  mkdir -p "$peers"
  "$uv" venv --quiet --clear --python "$base" "$venv"
  version="$(sed -n 's/^torch==//p' "$pins")"
  if ! has_cpu_torch "$venv/bin/python" "$version" "$links"; then
    say "no CPU wheel of torch $version in a find-links folder: asking PyTorch's CPU index"
    source=(--torch-backend cpu)
  fi
  "$uv" pip install --quiet --python "$venv/bin/python" "${source[@]}" \
    --override overrides.txt -r "$pins" ||
    die "the installation of $peer failed, for the reason above. Where PyTorch's CPU index" \
      "cannot be reached, put a CPU wheel of torch $version into a folder and name it in" \
      "UV_FIND_LINKS."
  # The workers are modules of the studies. They need nothing of the requirements but torch.
  "$uv" pip install --quiet --python "$venv/bin/python" --no-deps -e . -e ./eval
  printf '%s\n' "$wanted" >"$venv/.qm-vllm-setup"
  say "$peer done"
}

for peer in "$@"; do make_peer "$peer"; done
