"""Annotation files like those that Ego4D NLQ publishes, with every field of theirs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qm_vllm_eval.datasets.ego4d_nlq import Ego4dNlq

Change = Callable[[dict[str, Any]], Any]


def query(start: float, end: float, offset: float, text: Any = "Where is the cup?") -> dict:
    return {
        "clip_start_sec": start,
        "clip_end_sec": end,
        "video_start_sec": start + offset,
        "video_end_sec": end + offset,
        "video_start_frame": round(30 * (start + offset)),
        "video_end_frame": round(30 * (end + offset)),
        "template": "Objects: Where is object X before / after event Y?",
        "query": text,
        "slot_x": "cup",
        "verb_x": "[verb_not_applicable]",
        "raw_tags": ["Objects: Where is object X?", text, "cup"],
    }


def clip(uid: str, start: float, end: float, *queries: Any) -> dict[str, Any]:
    return {
        "clip_uid": uid,
        "video_start_sec": start,
        "video_end_sec": end,
        "video_start_frame": round(30 * start),
        "video_end_frame": round(30 * end),
        "clip_start_sec": 0,
        "clip_end_sec": end - start,
        "clip_start_frame": 0,
        "clip_end_frame": round(30 * (end - start)),
        "source_clip_uid": uid,
        "annotations": [{"language_queries": list(queries), "annotation_uid": f"{uid}-a"}],
    }


def published() -> dict[str, Any]:
    """Two videos of 64 s (120 rows) and 32 s (60 rows)."""
    asked = (query(1.0, 5.0, 0.02), query(2, 2, 0.02), query(0, 1, 0, ""))
    first = {
        "video_uid": "v0",
        "clips": [
            clip("c0", 0.0210286, 32.0, *asked),
            clip("c1", 32.0, 64.0, query(0.5, 31.5, 32.0), query(3.0, 4.0, 32.0, None)),
        ],
        "split": "val",
    }
    second = {"video_uid": "v1", "clips": [clip("c2", 0.0, 32.0, query(4.0, 8.0, 0.0))]}
    return {"version": "1", "date": "220216", "description": "NLQ Annotations (val)",
            "manifest": "manifest.csv", "videos": [first, second]}  # fmt: skip


def numbered(rows: int, width: int = 3) -> Tensor:
    return torch.arange(float(rows))[:, None].expand(rows, width).clone()


def sound_features(folder: Path) -> Path:
    """Makes ``features/`` with the rows of both videos; leaves it as it is if it is there."""
    features = folder / "features"
    if not features.is_dir():
        features.mkdir()
        torch.save(numbered(120), features / "v0.pt")
        torch.save(numbered(60), features / "v1.pt")
    return features


def write_nlq(folder: Path, change: Change = lambda held: None, **options: Any) -> Ego4dNlq:
    """:func:`published` as a data set; ``change`` spoils the annotations."""
    held = published()
    change(held)
    file = folder / "nlq_val.json"
    file.write_text(json.dumps(held))
    return Ego4dNlq(file, sound_features(folder), **options)
