"""Plans of prompts beyond max_model_len: as a whole, in parts, or a sentence with the numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qm_vllm import QuickMergeConfig, request_args
from qm_vllm.engine.memory import job_bytes
from qm_vllm.engine.messages import JobResult, WorkerMessage
from qm_vllm.engine.parts import places_needed
from qm_vllm.engine.requests.demands import Room
from qm_vllm.engine.requests.long_prompts import early_refusal
from qm_vllm.engine.requests.planning import plan_or_reason
from qm_vllm.engine.requests.report import report_of
from qm_vllm.engine.requests.scheduler_side import SchedulerSide
from qm_vllm.engine.untouched import Untouched
from qm_vllm_patches.media import Medium
from qm_vllm_patches.requests import Arrival
from tests.settings import facts
from tests.unit.test_scheduler_side import Handle, Store

LENGTH = 1024
BASE = QuickMergeConfig(ratio=0.25, max_source_tokens=20_000)
SMALL = facts(max_model_len=LENGTH, trained_length=8192)


def arrival(count: int, max_tokens: int = 16, **options: object) -> Arrival:
    ids = list(range(3, 3 + count))
    return Arrival(
        request_id="r", tokens=count, token_ids=ids, extra_args=request_args(**options),
        salt=None, generates=True, has_embeddings=False, resumable=False,
        lora=None, prompt_logprobs=False, handle=Handle(list(ids)), max_tokens=max_tokens,
    )


def plan(count: int, room: Room | None = None, max_tokens: int = 16, **options):
    request = arrival(count, max_tokens, **options)
    return plan_or_reason(request, BASE, SMALL, room or Room(20_000))


def test_what_the_model_reads_is_encoded_as_a_whole():
    found = plan(3000)
    assert found.spec.parts == ()
    assert found.config.delivery == "inject"
    assert found.config.positions == "source"
    assert found.demand.blocks == -(-3000 // 32)


@pytest.mark.parametrize("room", [
    Room(20_000, blocks=100), Room(20_000, max_bytes=job_bytes(BASE, SMALL.shape, 3000, 800)),
])
def test_what_does_not_fit_as_a_whole_is_read_in_parts_that_do(room):
    found = plan(8000, replace(room, blocks=room.blocks or 10_000), ratio=0.1)
    assert found.config.positions == "source"  # the model was trained for as many
    assert len(found.spec.parts) > 2
    assert found.demand.fits(room.blocks or 10_000)
    assert room.max_bytes is None or found.demand.bytes <= room.max_bytes


def test_beyond_what_the_model_reads_positions_are_compact():
    found = plan(12_000, ratio=0.05)
    assert found.config.positions == "compact"
    assert found.spec.parts == (0, 6000, 12_000)


@pytest.mark.parametrize(("count", "options", "max_tokens", "said"), [
    (4000, {}, 200, "993 tokens would be kept, which with max_tokens=200 is more than "
                    "max_model_len=1024"),
    (4000, {"ratio": 0.5}, LENGTH, "1985 tokens would be kept, which with max_tokens=1 "),
    (12_000, {"ratio": 0.05, "max_error": 0.1}, 16, "measures a prompt as a whole"),
    (3000, {"delivery": "native"}, 16, "vLLM reads no more than max_model_len=1024"),
    (12_000, {"ratio": 0.05, "delivery": "prefill"}, 16, "reads a prompt as a whole"),
    (20_001, {"ratio": 0.01}, 16, "more than max_source_tokens=20000"),
])
def test_what_cannot_be_served_says_why(count, options, max_tokens, said):
    found = plan(count, max_tokens=max_tokens, **options)
    assert isinstance(found, Untouched)
    assert said in str(found)


@pytest.mark.parametrize(("changes", "said"), [
    ({"lora": "a"}, "a request with a LoRA adapter is read by vLLM alone, up to max_model_len"),
    ({"media": (Medium("image", "hash", ((3, 40),)),)}, "with images, audio or video is read by"),
    ({"prompt_logprobs": True}, "prompt_logprobs needs every prompt position"),
])
def test_what_the_encoder_cannot_read_says_why(changes, said):
    request = replace(arrival(3000, ratio=0.1), **changes)
    found = plan_or_reason(request, BASE, SMALL, Room(20_000))
    assert isinstance(found, Untouched)
    assert said in str(found)


def test_memory_that_holds_no_part_is_a_sentence():
    found = plan(3000, Room(20_000, max_bytes=1 << 16), ratio=0.1)
    assert isinstance(found, Untouched)
    assert "raise job_memory_share" in str(found)


@pytest.mark.parametrize(("ratio", "served"), [(0.1, True), (0.18, True), (0.3, False)])
def test_a_part_and_what_was_kept_before_it_fit_into_what_the_model_knows(ratio, served):
    """1,024 positions hold a part of 512 tokens and the prompt's last 256 behind 256 kept ones."""
    known = replace(SMALL, trained_length=1024)
    found = plan_or_reason(arrival(2600, ratio=ratio), BASE, known, Room(20_000))
    if served:
        assert places_needed(found.spec) <= 1024
        assert len(found.spec.parts) > 4
    else:
        assert "no part of it fits beside what is kept; lower ratio or max_kept" in str(found)


@pytest.mark.parametrize(("extra", "tokens", "max_tokens", "said"), [
    (request_args(ratio=0.9), 3000, 1, ("3000 tokens", "max_model_len is 1024", "2700 tokens")),
    (request_args(), 3900, 100, ("975 tokens would be kept", "max_tokens=100")),
    (request_args(enabled=False), 3000, 1, ("disabled",)),
    ({"qm_ratio": 7}, 3000, 1, ("invalid option", "ratio")),
    (request_args(), 3000, 100, None),
    (request_args(), 3000, LENGTH, None),  # as many as fit
    (None, 3000, 1, None),
])
def test_a_frontend_says_at_once_what_it_can_know(extra, tokens, max_tokens, said):
    found = early_refusal(BASE.to_dict(), extra, tokens, max_tokens, LENGTH)
    if said is None:
        assert found is None
    else:
        assert found is not None
        assert all(part in found for part in said), found


@pytest.mark.parametrize("when", ["at arrival", "when its job fails"])
def test_a_request_that_vllm_cannot_read_ends_and_is_never_handed_on(when):
    side = SchedulerSide(BASE, SMALL)
    side.bind_blocks(Store())

    class Shadows:
        def __init__(self) -> None:
            self.ended: list[str] = []

        def give_up(self, request_id: str) -> None:
            self.ended.append(request_id)

    side.bind_shadows(shadows := Shadows())
    options = {"min_tokens": 5000} if when == "at arrival" else {"ratio": 0.1}
    side.arrived(arrival(3000, **options))
    if when != "at arrival":
        assert side.matched_tokens("r", 0) is None
        (job,) = side.step_message().jobs
        side.worker_message(WorkerMessage({job.id: JobResult(error="no memory")}))
    side.before_step()
    assert shadows.ended == ["r"]
    report = report_of(side.tracked["r"], 0, SMALL)
    assert report["status"] == "refused"
    assert "served compressed or not at all" in report["reason"]
    assert side.native.broken == []
