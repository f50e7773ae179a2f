"""Prompts with images: where their last token stands, and what becomes of one whose KV is lost."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from qm_vllm.engine.messages import JobResult
from qm_vllm.engine.requests.media_rules import without_media
from qm_vllm.engine.requests.memo import Outcome
from qm_vllm_patches.media import Medium
from qm_vllm_patches.positions import Positions
from tests.unit.test_scheduler_side import IDS, Engine

IMAGE = Medium("image", "one", ((100, 180), (200, 300)))


def runner(several=True, **parts):
    model = SimpleNamespace(uses_mrope=several)
    return SimpleNamespace(vllm_config=SimpleNamespace(model_config=model), **parts)


def axes(*lasts):
    """Positions on three axes: five tokens of text, four of a picture, then text."""
    rows = [[*range(5), 5, 5, 6, 6, 7, last] for last in lasts]
    return {"r": SimpleNamespace(mrope_positions=torch.tensor(rows))}


def test_a_models_only_axis_counts_tokens():
    assert Positions(runner(False)).last("r", 300) == 299


def test_the_last_position_is_that_of_all_axes_also_before_a_hint():
    positions = Positions(runner(requests=axes(8, 8, 8)))
    assert positions.last("r", 11) == 8
    assert positions.last("r", 10) == 7


@pytest.mark.parametrize("lasts", [(8, 8, 9), (6, 6, 6)])
def test_a_last_token_that_nothing_goes_on_from_is_an_error(lasts):
    with pytest.raises(ValueError, match="the highest position is"):
        Positions(runner(requests=axes(*lasts))).last("r", 11)


def test_the_second_model_runner_says_how_far_positions_lag_behind_tokens():
    states = SimpleNamespace(req_id_to_index={"other": 0, "r": 1})
    delta = SimpleNamespace(np=np.array([0, -2], dtype=np.int32))
    state = SimpleNamespace(rope_state=SimpleNamespace(prefill_delta=delta))
    assert Positions(runner(req_states=states, model_state=state)).last("r", 11) == 8


def test_positions_of_images_are_no_marks():
    assert without_media([0, 99, 100, 179, 180, 199, 200, 299, 300], [IMAGE]) == [
        0, 99, 180, 199, 300
    ]
    assert without_media([3, 4], []) == [3, 4]


def tracked_request(started=False, begun=()):
    engine = Engine()
    engine.side.bind_shadows(SimpleNamespace())
    handle = engine.add("r", delivery="native")
    tracked = engine.side.tracked["r"]
    tracked.arrival = replace(tracked.arrival, media=(IMAGE,))
    tracked.begun.extend(begun)
    engine.side._resize(tracked, Outcome.of(JobResult(kept=[0, 5, 639])))
    handle.started = started
    return engine, handle


def test_a_prompt_with_images_whose_kv_is_lost_is_prefilled_whole():
    engine, handle = tracked_request(begun=[7])
    assert handle.ids == [IDS[0], IDS[5], IDS[639], 7]
    engine.side._fail(engine.side.tracked["r"], "no blocks")
    assert handle.ids == [*IDS, 7]
    assert engine.side.matched_tokens("r", 0) == 0
    report = engine.side.finished("r", 20)
    assert report["status"] == "untouched"
    assert report["reason"] == "its result could not be delivered: no blocks"


def test_one_that_has_answered_in_part_ends():
    engine, handle = tracked_request(started=True)
    engine.side._fail(engine.side.tracked["r"], "no blocks")
    assert engine.side.native.broken == ["r"]
    assert len(handle.ids) == 3
