#!/usr/bin/env bash
# Clients that people use against a server of ours: the OpenAI, Anthropic and LiteLLM packages, vLLM's
# own benchmark and the Language Model Evaluation Harness. Prints a table; exit code 1 on a failure.
#
# scripts/clients.sh [--model FOLDER] [--only openai,anthropic,litellm,bench,lm-eval]
#   default: the embedded SmolLM2 and all of them; some minutes on two cores
# QM_VLLM_CACHE=/folder   where the clients' environment goes (0.7 GB); default: ~/.cache/qm_vllm
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
bash "$root/scripts/setup.sh"
cache="${QM_VLLM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/qm_vllm}"
python="$root/.venv/bin/python"
uv="$root/.venv/bin/uv"
pins="$root/constraints-clients.txt"
venv="$cache/clients"

say() { printf 'clients: %s\n' "$*" >&2; }
die() { printf 'clients: %s\n' "$*" >&2; exit 1; }

# The clients want other versions of packages than vLLM, so they have an environment of their own.
wanted="$({ cat "$pins"; "$python" -V; } | sha256sum | cut -d' ' -f1)"
if [ "$(cat "$venv/.qm-vllm-setup" 2>/dev/null || true)" != "$wanted" ] ||
  ! "$venv/bin/python" -c '' 2>/dev/null; then
  say "making $venv"
  mkdir -p "$cache" || die "cannot make $cache; set QM_VLLM_CACHE to a folder that can be written."
  "$uv" venv --quiet --clear --python "$python" "$venv"
  "$uv" pip install --quiet --python "$venv/bin/python" -r "$pins" ||
    die "the installation failed, for the reason above."
  printf '%s\n' "$wanted" >"$venv/.qm-vllm-setup"
fi

export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"
export VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1
exec "$python" -m qm_vllm_eval.serving.clients --python "$venv/bin/python" "$@"
