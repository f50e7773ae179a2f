"""Finds the environments that ``scripts/setup_peers.sh`` makes."""

from __future__ import annotations

import os
from pathlib import Path

PEERS = ("kvpress", "llmlingua")


class PeerMissing(RuntimeError):
    """The environment of a peer is not there. The message says what to run."""


def peers_folder() -> Path:
    """``$QM_VLLM_PEERS``, else ``.peers`` in the checkout."""
    chosen = os.environ.get("QM_VLLM_PEERS")
    return Path(chosen) if chosen else Path(__file__).resolve().parents[3] / ".peers"


def peer_python(peer: str) -> Path:
    """The interpreter of a peer's environment.

    Args:
        peer: one of :data:`PEERS`.

    Raises:
        ValueError: no such peer.
        PeerMissing: its environment was not made, or not to the end.
    """
    if peer not in PEERS:
        raise ValueError(f"unknown peer {peer!r}; known: {', '.join(PEERS)}")
    folder = peers_folder() / peer
    python = folder / "bin" / "python"
    if not python.exists() or not (folder / ".qm-vllm-setup").exists():
        raise PeerMissing(f"no environment of {peer} in {folder}; run scripts/setup_peers.sh")
    return python
