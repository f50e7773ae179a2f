"""The presses of NVIDIA's kvpress package, run by its own code in an environment of its own."""

from __future__ import annotations

from qm_vllm_eval.methods.base import Method

WORKER = "kvpress"
PRESSES = (
    "snapkv", "knorm", "expected_attention", "pyramidkv", "merging_snapkv", "keydiff",
    "compactor", "kvzip", "kvzip_global",
)


def method(press: str) -> Method:
    """One press as a method of the bench."""
    name = f"kvpress-{press.replace('_', '-')}"
    return Method(name, f"kvpress: {press}", peer=WORKER)


def press_of(name: str) -> str:
    """The worker's name of a method."""
    return name.removeprefix("kvpress-").replace("-", "_")
