"""The synthetic set: what is planted can be found, what is not cannot."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qm_vllm_eval.datasets.ego4d_nlq import FEATURES_PER_SECOND, Ego4dNlq
from qm_vllm_eval.datasets.ego4d_synthetic import (
    QUERIES,
    SyntheticSpec,
    kind_directions,
    write_synthetic,
)
from qm_vllm_eval.localisation import METRICS, Prediction, evaluate, random_windows

SMALL = SyntheticSpec(videos=3, clip_seconds=(160.0, 200.0), width=32)


def rows_of(folder: Path, spec: SyntheticSpec = SMALL, split: str = "val") -> list[Any]:
    return list(Ego4dNlq(write_synthetic(folder, split, spec), folder / "features"))


def test_sizes_are_those_of_the_spec(tmp_path: Path) -> None:
    rows = rows_of(tmp_path)
    assert [row.reason for row in rows] == [""] * 18
    assert len({row.clip_uid for row in rows}) == 6
    assert len({row.video_uid for row in rows}) == 3
    for row in rows:
        assert row.features.shape[1] == 32
        assert 300 <= len(row.features) <= 375
        assert len(row.features) == round(row.clip_seconds * FEATURES_PER_SECOND)
        start, end = (time * FEATURES_PER_SECOND for time in row.window)
        assert 6 <= end - start <= 45
        assert start == pytest.approx(round(start), abs=1e-9)
        assert 0 <= start < end <= len(row.features)
        assert not row.zero_length


def test_a_query_names_one_kind_and_windows_do_not_touch(tmp_path: Path) -> None:
    clips: dict[str, list[Any]] = {}
    for row in rows_of(tmp_path):
        clips.setdefault(row.clip_uid, []).append(row)
    for rows in clips.values():
        assert len({row.query for row in rows}) == 3
        ordered = sorted(row.window for row in rows)
        assert all(a[1] < b[0] for a, b in pairwise(ordered))


def test_equal_arguments_write_equal_files_and_other_seeds_do_not(tmp_path: Path) -> None:
    def files(folder: str, spec: SyntheticSpec) -> dict[str, bytes]:
        write_synthetic(tmp_path / folder, "val", spec)
        found = sorted((tmp_path / folder).rglob("*.*"))
        return {file.name: file.read_bytes() for file in found if file.is_file()}

    small = replace(SMALL, videos=1)
    assert files("a", small) == files("b", small)
    assert files("a", small) != files("c", replace(small, seed=1))
    uids = {row.video_uid for row in rows_of(tmp_path / "d", small)}
    assert uids.isdisjoint(row.video_uid for row in rows_of(tmp_path / "e", replace(small, seed=1)))


def test_the_first_videos_do_not_depend_on_how_many_there_are(tmp_path: Path) -> None:
    one = rows_of(tmp_path / "one", replace(SMALL, videos=1))
    three = rows_of(tmp_path / "three")[: len(one)]
    assert [row.row_id for row in one] == [row.row_id for row in three]
    assert all(torch.equal(a.features, b.features) for a, b in zip(one, three, strict=True))


def test_directions_are_orthonormal_and_shared() -> None:
    directions = kind_directions(8, 64)
    torch.testing.assert_close(directions @ directions.T, torch.eye(8), atol=1e-6, rtol=0)
    assert torch.equal(directions[:5], kind_directions(5, 64))
    assert not torch.equal(directions, kind_directions(8, 64, seed=1))


def best_window(signal: np.ndarray) -> tuple[float, float]:
    """The stretch of rows with the greatest sum (Kadane), in seconds."""
    best, at, total, low = -np.inf, (0, 1), 0.0, 0
    for row, value in enumerate(signal):
        if total <= 0:
            total, low = 0.0, row
        total += value
        if total > best:
            best, at = total, (low, row + 1)
    return at[0] / FEATURES_PER_SECOND, at[1] / FEATURES_PER_SECOND


def scores(rows: list[Any], windows: list[Any]) -> dict[str, float]:
    predictions = [Prediction(*row.key, w) for row, w in zip(rows, windows, strict=True)]
    result = evaluate(predictions, {row.key: row.window for row in rows})
    return {metric: result[metric]["mean"] for metric in METRICS}


def test_who_knows_the_directions_finds_every_event(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, replace(SMALL, strength=4.0))
    directions = kind_directions(SMALL.kinds, SMALL.width)
    windows = []
    for row in rows:
        signal = row.features @ directions[QUERIES.index(row.query)]
        windows.append((best_window(signal.numpy() - 2.0),))
    found = scores(rows, windows)
    assert found["R@1 IoU>0.5"] == 1
    assert found["mIoU"] > 0.99


def test_the_truth_scores_one_and_chance_next_to_nothing(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, replace(SMALL, videos=12))
    assert set(scores(rows, [(row.window,) for row in rows]).values()) == {1.0}
    rng = np.random.default_rng(0)
    chance = [
        scores(rows, [tuple(random_windows(row.clip_seconds, rng)) for row in rows])
        for _ in range(20)
    ]
    mean = {metric: np.mean([run[metric] for run in chance]) for metric in METRICS}
    assert mean["R@1 IoU>0.5"] < 0.04
    assert mean["R@5 IoU>0.3"] < 0.3


def test_background_rows_have_length_one_and_resemble_the_row_before(tmp_path: Path) -> None:
    quiet = replace(SMALL, strength=0.0, noise=0.0)
    features = rows_of(tmp_path, quiet)[0].features
    assert features.norm(dim=1).mean() == pytest.approx(1, abs=0.15)
    neighbours = torch.cosine_similarity(features[1:], features[:-1])
    assert neighbours.median() > 0.95


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"videos": 0}, "at least one video"),
        ({"queries_per_clip": 0}, "one query a clip"),
        ({"queries_per_clip": 6}, r"need queries \(6\) <= events a clip \(5\)"),
        ({"events_per_clip": 9}, r"events a clip \(9\) <= kinds \(8\)"),
        ({"kinds": 13}, r"kinds \(13\) <= 12"),
        ({"width": 7}, "8 kinds need a width of at least that, not 7"),
        ({"smoothness": 1.0}, r"smoothness 1.0 is not in \[0, 1\)"),
        ({"clip_seconds": (0.0, 9.0)}, "clips of"),
        ({"clip_seconds": (9.0, 8.0)}, "clips of"),
        ({"event_seconds": (float("nan"), 2.0)}, "events of"),
        ({"clip_seconds": (60.0, 90.0)}, "may not fit into the shortest clip"),
    ],
)
def test_numbers_that_do_not_fit_together_are_refused(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        SyntheticSpec(**change)


def test_the_tightest_events_fit(tmp_path: Path) -> None:
    spec = SyntheticSpec(videos=4, clip_seconds=(150.4, 151.0), event_seconds=(24.0, 24.0))
    assert all(row.usable for row in rows_of(tmp_path, spec))
