"""Writes annotation and feature files in the form of Ego4D NLQ, for sets that are made here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qm_vllm_eval.localisation import Span

FPS = 30
FOLDER = "features"


@dataclass(frozen=True)
class Moment:
    """A query with its window in seconds of the clip."""

    query: str
    window: Span
    template: str = ""


def clip_entry(uid: str, start: float, end: float, moments: Sequence[Moment]) -> dict[str, Any]:
    """One clip of a video with one annotation.

    Args:
        uid: the clip's; the annotation's is made from it.
        start, end: seconds of the video.
    """
    return {
        "clip_uid": uid,
        **_times("video", start, end),
        **_times("clip", 0.0, end - start),
        "source_clip_uid": uid,
        "annotations": [
            {
                "language_queries": [_query(moment, start) for moment in moments],
                "annotation_uid": f"{uid}-a0",
            }
        ],
    }


def video_entry(uid: str, clips: Sequence[dict[str, Any]], split: str) -> dict[str, Any]:
    """One video with its clips."""
    return {"video_uid": uid, "clips": list(clips), "split": split}


def write_annotations(
    folder: Path, split: str, videos: Sequence[dict[str, Any]], description: str
) -> Path:
    """Writes ``nlq_SPLIT.json``; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"nlq_{split}.json"
    held = {"version": "1", "description": description, "videos": list(videos)}
    file.write_text(json.dumps(held, indent=1) + "\n", encoding="utf-8")
    return file


def write_features(folder: Path, uid: str, features: Tensor) -> Path:
    """Writes the features [T, D] of one video; returns the file's path."""
    target = folder / FOLDER
    target.mkdir(parents=True, exist_ok=True)
    file = target / f"{uid}.pt"
    torch.save(features.contiguous().clone(), file)
    return file


def _query(moment: Moment, offset: float) -> dict[str, Any]:
    start, end = moment.window
    return {
        "clip_start_sec": start,
        "clip_end_sec": end,
        **_times("video", start + offset, end + offset),
        "template": moment.template,
        "query": moment.query,
        "raw_tags": [moment.template, moment.query],
    }


def _times(prefix: str, start: float, end: float) -> dict[str, Any]:
    return {
        f"{prefix}_start_sec": start,
        f"{prefix}_end_sec": end,
        f"{prefix}_start_frame": round(start * FPS),
        f"{prefix}_end_frame": round(end * FPS),
    }
