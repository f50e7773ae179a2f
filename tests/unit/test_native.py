"""The native delivery's own arithmetic: turned keys, blocks of groups, refusals, seen queries."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qm_vllm import QuickMergeConfig
from qm_vllm.compress import window_weights
from qm_vllm.engine import facts
from qm_vllm.engine.messages import JobSpec, WorkerMessage
from qm_vllm.engine.native.blocks import first_block, own_blocks, prompt_blocks, split
from qm_vllm.engine.native.native_job import NativeJob
from qm_vllm.engine.native.rotation import Turn, stands_still, turns_as
from qm_vllm.engine.requests.planning import RequestPlan, plan_or_reason
from qm_vllm.layers import WINDOW_QUERIES
from tests.settings import settings
from tests.unit.test_scheduler_side import Engine, N


def table(width: int, count: int = 4096, factor: float = 1.0) -> torch.Tensor:
    """RoPE's angles in float64, stored as vLLM stores them."""
    frequencies = 10000.0 ** -(torch.arange(0, width, 2).double() / width)
    angles = torch.outer(torch.arange(count).double(), frequencies)
    return torch.cat((angles.cos(), angles.sin()), -1).mul(factor).float()


def rotated(rows: torch.Tensor, positions: list[int], width: int, *, halves: bool, factor=1.0):
    """RoPE of rows [T, H, D] as complex numbers in float64: eq. 34 of Su et al., 2021."""
    frequencies = 10000.0 ** -(torch.arange(0, width, 2).double() / width)
    angles = torch.outer(torch.tensor(positions).double(), frequencies)[:, None]
    part = rows[..., :width].double()
    first, second = part.chunk(2, -1) if halves else (part[..., ::2], part[..., 1::2])
    turned = torch.complex(first, second) * torch.polar(torch.full_like(angles, factor), angles)
    pairs = (turned.real, turned.imag)
    joined = torch.cat(pairs, -1) if halves else torch.stack(pairs, -1).flatten(-2)
    return torch.cat((joined, rows[..., width:].double()), -1)


@pytest.mark.parametrize(("device", "dtype", "matrix_units", "want"), [
    ("cpu", torch.float32, True, 0), ("cpu", torch.bfloat16, False, 0),
    ("cpu", torch.bfloat16, True, 4096), ("cuda", torch.bfloat16, True, 16384),
])
def test_where_the_encoder_pays(monkeypatch, device, dtype, matrix_units, want):
    monkeypatch.setattr(facts, "computes_bf16", lambda: matrix_units)
    assert facts._encode_from(settings(device=device, dtype=dtype)) == want


@pytest.mark.parametrize("factor", [1.0, 1.21])
@pytest.mark.parametrize("halves", [True, False])
@pytest.mark.parametrize("width", [8, 32])
@given(by=st.integers(0, 4000), seed=st.integers(0, 9))
def test_keys_turned_back_are_those_of_earlier_positions(width, halves, factor, by, seed):
    rows = torch.randn(5, 2, 32, generator=torch.Generator().manual_seed(seed))
    positions = [by, by + 1, by + 7, by + 50, by + 95]
    turn = Turn(table(width, factor=factor), width, halves)
    keys = rotated(rows, positions, width, halves=halves, factor=factor).float()
    want = rotated(rows, [p - by for p in positions], width, halves=halves, factor=factor)
    assert torch.allclose(turn.back(keys, by).double(), want, atol=2e-3)
    assert torch.allclose(turn.back(want.float(), -by).double(), keys.double(), atol=2e-3)


def test_what_positions_do_to_rows_is_told_apart():
    rows, positions = torch.randn(1, 2, 32).expand(4, -1, -1), [0, 3, 37, 999]
    turn, other = Turn(table(32), 32, True), Turn(table(32), 32, False)
    keys = rotated(rows, positions, 32, halves=True).float()
    assert stands_still(rows)
    assert not stands_still(keys)
    assert turns_as(turn, keys, positions)
    assert not turns_as(other, keys, positions)
    assert not turns_as(turn, keys * torch.tensor([1.0, 1.0, 1.0, 1.3])[:, None, None], positions)
    assert not turns_as(turn, torch.full_like(keys, torch.nan), positions)
    assert not turns_as(Turn(table(32, 64), 32, True), keys, positions)


def test_a_turn_beyond_the_table_is_an_error():
    for by in (4096, -4096):
        with pytest.raises(ValueError, match=f"turned back by {by}"):
            Turn(table(32), 32, True).back(torch.randn(1, 1, 32), by)


@given(
    kept=st.integers(1, 2000), size=st.sampled_from([16, 32, 64]),
    windows=st.lists(st.one_of(st.none(), st.integers(2, 700)), min_size=1, max_size=4),
)
def test_own_blocks_hold_every_position_that_is_needed(kept, size, windows):
    counts = own_blocks(kept, windows, size)
    for count, window in zip(counts, windows, strict=True):
        first = first_block(kept, window, size)
        oldest = 0 if window is None else max(0, kept - window)
        assert first * size <= oldest
        assert (first + count) * size >= kept - 1
        assert count <= -(-kept // size)
    parts = split(list(range(sum(counts))), counts)
    assert [len(part) for part in parts] == counts
    assert [one for part in parts for one in part] == list(range(sum(counts)))


def test_a_prompt_needs_all_its_blocks_where_attention_sees_all():
    assert prompt_blocks(700, [None], 32, 256) == 22
    assert prompt_blocks(700, [None, 64], 32, 256) == 22 + 10 + 1
    assert prompt_blocks(100, [64], 32, 256) == 4 + 1


@pytest.mark.parametrize("cap", [0.0, 5.0])
@pytest.mark.parametrize("at_once", [1, 4096, 1 << 20])
def test_window_weights_are_causal_softmax(at_once, cap):
    queries, keys = torch.randn(6, 8, 16), torch.randn(50, 2, 16)
    logits = torch.einsum("whd,nhd->hwn", queries.double(),
                          keys.double().repeat_interleave(4, 1)) * 0.3
    logits = torch.tanh(logits / cap) * cap if cap else logits
    seen = torch.arange(50) <= torch.arange(44, 50)[:, None]
    want = logits.masked_fill(~seen, -torch.inf).softmax(-1)
    parts = list(window_weights(queries, keys, 0.3, at_once, cap))
    assert torch.allclose(torch.cat([part for part, _ in parts]).double(), want, atol=1e-5)


@pytest.mark.parametrize(("options", "word"), [
    ({"saliency": "entropy"}, "states"), ({"saliency": "norm"}, "states"),
    ({"alpha": 0.4}, "alpha"), ({"max_error": 0.1}, "max_error"),
    ({"positions": "compact"}, "positions"),
])
def test_what_needs_states_is_refused_with_a_sentence(options, word):
    engine = Engine()
    engine.side.bind_shadows(object())
    engine.add("r", delivery="native", **options)
    report = engine.side.finished("r", 20)
    assert report["status"] == "untouched"
    assert word in report["reason"]


@pytest.mark.parametrize("delivery", ["inject", "prefill"])
def test_what_needs_all_keys_is_refused_elsewhere_with_a_sentence(delivery):
    engine = Engine()
    engine.add("r", delivery=delivery, saliency="leverage")
    reason = engine.side.finished("r", 20)["reason"]
    assert 'saliency="leverage" needs delivery="native"' in reason


@pytest.mark.parametrize(("first", "delivery"), [(True, "native"), (False, "inject")])
def test_a_short_prompt_that_nothing_looks_at_may_cost_a_step(first, delivery):
    engine = Engine(QuickMergeConfig(ratio=0.4))
    engine.side.bind_shadows(object())
    engine.add("r", ids=list(range(400)), query_visible=False)
    arrival = replace(engine.side.tracked["r"].arrival, first=first)
    made = plan_or_reason(arrival, engine.side.config, engine.side.facts, engine.side.room)
    assert made.config.delivery == delivery


@pytest.mark.parametrize(("why", "facts", "bound"), [
    ("scheduler_cls", {}, False), ("full graphs", {"no_native": "full graphs"}, True),
])
def test_an_engine_that_cannot_deliver_natively_says_so(why, facts, bound):
    engine = Engine(**facts)
    if bound:
        engine.side.bind_shadows(object())
    engine.add("r", delivery="native")
    assert engine.side.matched_tokens("r", 0) == 0
    assert why in engine.side.finished("r", 20)["reason"]


def test_a_prompt_that_does_not_fit_beside_its_result_is_refused():
    engine = Engine(max_model_len=8192)
    engine.side.bind_shadows(object())
    engine.add("r", ids=list(range(190 * 32)), delivery="native")
    assert "KV blocks" in engine.side.finished("r", 20)["reason"]


@pytest.mark.parametrize(("tokens", "facts", "options", "delivery"), [
    (1200, {}, {}, "native"), (1023, {}, {}, "inject"), (1024, {}, {}, "native"),
    (1200, {"prefix_caching": False}, {}, "inject"),
    (1200, {}, {"query_visible": False}, "native"),
    (1200, {"prefix_caching": False}, {"query_visible": False}, "native"),
    (400, {}, {"query_visible": False}, "inject"),
    (1200, {"no_native": "recurrent"}, {"query_visible": False}, "inject"),
    (1200, {}, {"saliency": "leverage"}, "native"),
    (1200, {"no_native": "recurrent"}, {"saliency": "leverage"}, None),
    (1200, {}, {"saliency": "entropy"}, "inject"),
    (1200, {}, {"max_error": 0.2}, "inject"),
    (1200, {"no_native": "recurrent"}, {}, "inject"),
    (1200, {"no_inject": "no adapter"}, {}, "native"),
    (1200, {"prefix_caching": False, "encode_from": 1201}, {}, "native"),
    (1200, {"prefix_caching": False, "encode_from": 1200}, {}, "inject"),
    (1200, {"encode_from": 1201, "no_native": "recurrent"}, {}, "inject"),
    (1200, {"no_inject": "no adapter"}, {"query_visible": False}, "native"),
    (1200, {"no_inject": "no adapter"}, {"saliency": "entropy"}, None),
    (1200, {"no_inject": "no adapter", "no_native": "recurrent"}, {}, None),
])
def test_auto_is_decided_by_the_prompt_and_the_engine(tokens, facts, options, delivery):
    engine = Engine(QuickMergeConfig(ratio=0.4), **facts)
    engine.side.bind_shadows(object())
    engine.add("r", ids=list(range(tokens)), **options)
    plan = engine.side.tracked["r"].plan
    assert (plan and plan.config.delivery) == delivery


def test_an_answer_of_one_token_is_the_encoders_where_it_runs():
    engine = Engine(QuickMergeConfig(ratio=0.4))
    engine.side.bind_shadows(object())
    engine.add("r", ids=list(range(1200)))
    arrival = replace(engine.side.tracked["r"].arrival, one_token=True)
    made = plan_or_reason(arrival, engine.side.config, engine.side.facts, engine.side.room)
    assert made.config.delivery == "inject"


def test_auto_leaves_short_prompts_alone_where_it_could_only_prefill_them():
    engine = Engine(QuickMergeConfig(ratio=0.4), no_inject="no adapter")
    engine.side.bind_shadows(object())
    engine.add("r")
    assert "below 1,024" in engine.side.finished("r", 20)["reason"]
    for name, options in (("asked", {"delivery": "native"}), ("looked into", {"details": True})):
        engine.add(name, **options)
        assert engine.side.tracked[name].plan.config.delivery == "native"


@pytest.mark.parametrize(("changes", "reason"), [
    ({"first": True}, None), ({"one_token": True}, "one token"), ({}, "below 1,024"),
])
def test_auto_costs_no_step_that_nobody_gains_by(changes, reason):
    engine = Engine(QuickMergeConfig(ratio=0.4), no_inject="no adapter")
    engine.side.bind_shadows(object())
    engine.add("r")
    tracked = engine.side.tracked["r"]
    made = plan_or_reason(
        replace(tracked.arrival, **changes), engine.side.config, engine.side.facts,
        engine.side.room,
    )
    assert isinstance(made, RequestPlan) if reason is None else reason in str(made)


def job() -> NativeJob:
    spec = JobSpec(1, "k", list(range(N)), QuickMergeConfig(delivery="native"), 4, (1, 2), [], 32)
    made = NativeJob(spec, [], None, (None,), torch.device("cpu"))
    made.watched = frozenset({"layer"})
    return made


@given(cuts=st.lists(st.integers(1, N - 1), max_size=5))
def test_queries_are_seen_in_any_chunks(cuts):
    one, rows = job(), torch.arange(N).float()[:, None, None].expand(-1, 2, 4)
    bounds = sorted({0, *cuts, N})
    for start, stop in pairwise(bounds):
        one.see("layer", rows[start:stop], start)
        one.see("other", rows[start:stop], start)
    assert torch.equal(one.queries["layer"], rows[N - WINDOW_QUERIES:])
    assert one._seen == {"layer": N}


def test_a_gap_in_what_was_seen_shows():
    one, rows = job(), torch.zeros(N, 2, 4)
    one.see("layer", rows[: N - 30], 0)
    one.see("layer", rows[N - 10 :], N - 10)  # the rows between ran unseen
    assert one._seen["layer"] != N
    for start in (0, N - 40):  # begun again after a preemption
        one.see("layer", rows[start:], start)
    assert one._seen["layer"] == N


def test_a_broken_request_of_any_rank_is_told():
    told = WorkerMessage(broken=["a"]).merged(WorkerMessage(broken=["a", "b"]))
    assert told.broken == ["a", "b"]
