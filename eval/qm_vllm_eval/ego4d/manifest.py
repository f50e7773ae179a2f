"""Clips as feature files, and a manifest of their queries for ``qm-vllm train-prior``."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch

from qm_vllm_eval.datasets.ego4d_nlq import NlqRow


def write_manifest(rows: Iterable[NlqRow], folder: Path) -> Path:
    """Write ``clips/CLIP.pt`` and ``manifest.jsonl``; returns the path of the latter.

    Rows with a reason, without a window, and those whose window has no length are left out.

    Raises:
        ValueError: no row is left.
    """
    clips = folder / "clips"
    clips.mkdir(parents=True, exist_ok=True)
    written: set[str] = set()
    lines = []
    for row in rows:
        if not row.usable or row.window is None or row.zero_length:
            continue
        assert row.features is not None
        name = f"{row.video_uid}--{row.clip_uid}.pt".replace("/", "_")
        if name not in written:
            torch.save(row.features, clips / name)
            written.add(name)
        start, end = (min(max(t / row.clip_seconds, 0.0), 1.0) for t in row.window)
        if start < end:
            lines.append(json.dumps(
                {"path": f"clips/{name}", "span": [start, end], "query": row.query}
            ))
    if not lines:
        raise ValueError("no query of these annotations can be trained on")
    manifest = folder / "manifest.jsonl"
    manifest.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return manifest
