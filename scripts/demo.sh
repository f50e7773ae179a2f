#!/usr/bin/env bash
# One command from a fresh checkout to the comparison table: sets up .venv if need be, then
# runs `qm-vllm demo` on the CPU. All arguments go to it: scripts/demo.sh --ratio 0.4
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
bash "$root/scripts/setup.sh"

# Everything is on the disk by now: no look-ups on the network, no usage statistics.
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"
export VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1

exec "$root/.venv/bin/qm-vllm" demo "$@"
