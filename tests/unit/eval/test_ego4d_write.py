"""What is written in the form of Ego4D NLQ is what the reader reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qm_vllm_eval.datasets.ego4d_nlq import Ego4dNlq
from qm_vllm_eval.datasets.ego4d_write import (
    FOLDER,
    Moment,
    clip_entry,
    video_entry,
    write_annotations,
    write_features,
)
from tests.unit.eval.nlq_files import published

MOMENTS = [Moment("Where is the cup?", (1.0, 4.0), "Objects"), Moment("Who came?", (2.5, 2.5))]


def test_entries_have_the_published_fields() -> None:
    entry = clip_entry("c", 32.0, 64.0, MOMENTS)
    model = published()["videos"][0]["clips"][0]
    assert set(entry) == set(model)
    (annotation,), (modelled,) = entry["annotations"], model["annotations"]
    assert set(annotation) == set(modelled)
    first, second = annotation["language_queries"]
    missing = set(modelled["language_queries"][0]) - set(first)
    assert missing == {"slot_x", "verb_x"}
    assert (first["clip_start_sec"], first["clip_end_sec"]) == (1.0, 4.0)
    assert (first["video_start_sec"], first["video_end_sec"]) == (33.0, 36.0)
    assert (first["video_start_frame"], first["video_end_frame"]) == (990, 1080)
    assert (entry["clip_start_sec"], entry["clip_end_sec"]) == (0.0, 32.0)
    assert (entry["clip_end_frame"], entry["video_end_frame"]) == (960, 1920)
    assert second["template"] == ""


def test_written_files_are_read_back(tmp_path: Path) -> None:
    features = torch.randn(120, 5)
    clips = [clip_entry("c0", 0.0, 32.0, MOMENTS), clip_entry("c1", 32.0, 64.0, MOMENTS[:1])]
    file = write_annotations(tmp_path / "set", "val", [video_entry("v", clips, "val")], "made here")
    stored = write_features(tmp_path / "set", "v", features)
    assert (file.name, stored.name, stored.parent.name) == ("nlq_val.json", "v.pt", FOLDER)
    held = json.loads(file.read_text())
    assert (held["description"], held["videos"][0]["split"]) == ("made here", "val")
    rows = list(Ego4dNlq(file, stored.parent))
    assert [row.reason for row in rows] == [""] * 3
    assert [row.window for row in rows] == [(1.0, 4.0), (2.5, 2.5), (1.0, 4.0)]
    assert [row.zero_length for row in rows] == [False, True, False]
    assert [row.query for row in rows] == ["Where is the cup?", "Who came?", "Where is the cup?"]
    assert torch.equal(rows[0].features, features[:60])
    assert torch.equal(rows[2].features, features[60:])


def test_a_part_of_a_tensor_is_stored_without_the_rest(tmp_path: Path) -> None:
    whole = torch.randn(4000, 8)
    file = write_features(tmp_path, "v", whole[::1000])
    assert file.stat().st_size < 4000
    assert torch.equal(torch.load(file, weights_only=True), whole[::1000])


@pytest.mark.parametrize("split", ["train", "val"])
def test_writing_again_gives_the_same_bytes(split: str, tmp_path: Path) -> None:
    videos = [video_entry("v", [clip_entry("c", 0.0, 9.0, MOMENTS)], split)]
    first = write_annotations(tmp_path, split, videos, "x").read_bytes()
    assert write_annotations(tmp_path, split, videos, "x").read_bytes() == first


@given(st.integers(0, 5000), st.integers(1, 5000), st.integers(1, 500))
def test_frames_and_seconds_agree(start: int, length: int, shift: int) -> None:
    moment = Moment("q", (start / 30, (start + length) / 30))
    (asked,) = clip_entry("c", shift / 30, (shift + 9000) / 30, [moment])["annotations"][0][
        "language_queries"
    ]
    assert asked["video_start_frame"] == start + shift
    assert asked["video_end_frame"] == start + length + shift
