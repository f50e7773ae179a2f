"""A text that says what will be asked: what becomes of it before an engine runs."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from qm_vllm import QuickMergeConfig
from qm_vllm.compress import QueryAttention
from qm_vllm.config import ConfigError
from qm_vllm.engine.jobs.encoder_pass import gather
from qm_vllm.engine.messages import JobResult, JobSpec
from qm_vllm.engine.native.native_job import NativeJob
from qm_vllm.engine.requests.hints import Hints
from qm_vllm.engine.requests.native_runs import NativeRuns, computed_last
from qm_vllm.engine.requests.planning import plan_or_reason
from qm_vllm.engine.requests.tally import Tally
from qm_vllm.layers import WINDOW_QUERIES
from tests.tokens import Numbers
from tests.unit.test_scheduler_side import BLOCK, IDS, Engine, N, ShadowStep, result

HINTS = Hints(Numbers())


def asking(config: QuickMergeConfig | None = None, **changes) -> Engine:
    """An engine that reads hints."""
    engine = Engine(config, hints=HINTS, **changes)
    engine.side.bind_shadows(object())
    return engine


def planned(engine: Engine, **options):
    engine.add("r", **options)
    return engine.side.tracked["r"].plan


def reason(engine: Engine, **options) -> str:
    engine.add("r", **options)
    return engine.side.finished("r", 20)["reason"]


def spec(tokens: int = N, hint: int = 10, **options) -> JobSpec:
    options = {"hint": "7", **options} if hint else options
    config = QuickMergeConfig(**options)
    return JobSpec(
        1, "k", list(range(tokens)), config, 4, (1, 2), [], 32, hint=tuple(range(hint))
    )


def test_the_last_tokens_of_a_hint_count_and_none_is_put_before_it():
    assert HINTS.ids("") == ()
    assert HINTS.ids("5 6") == (5, 6)
    many = [3 + i for i in range(100)]
    assert HINTS.ids(" ".join(map(str, many))) == tuple(many[-WINDOW_QUERIES:])
    with pytest.raises(ConfigError, match="has no tokens"):
        HINTS.ids("   ")
    with pytest.raises(ConfigError, match="no tokenizer"):
        Hints().ids("5")
    assert Hints().ids("") == ()


def test_a_job_reads_prompt_and_hint_and_counts_the_prompt_alone():
    one = spec()
    assert one.read_ids == [*range(N), *range(10)]
    assert one.rows == N + 10
    assert one.protected().shape == (N,)
    assert bool(one.protected()[-32:].all())
    assert spec(hint=0).read_ids is not None
    assert spec(hint=0).rows == N


@pytest.mark.parametrize(("tokens", "hint", "options", "window"), [
    (N, 10, {}, WINDOW_QUERIES), (N, 10, {"query_visible": False}, 10), (N, 0, {}, WINDOW_QUERIES),
    (N, 0, {"query_visible": False}, WINDOW_QUERIES), (40, 10, {}, 50), (40, 0, {}, 40),
])
def test_the_prompts_end_looks_too_unless_it_may_not(tokens, hint, options, window):
    assert spec(tokens, hint, **options).window == window


@pytest.mark.parametrize("delivery", ["inject", "native", "prefill"])
def test_blocks_and_memory_are_those_of_both_and_k_that_of_the_prompt(delivery):
    hint = " ".join("7" for _ in range(40))
    plain, hinted = (
        planned(asking(), delivery=delivery, **more) for more in ({}, {"hint": hint})
    )
    assert (plain.asked, plain.protected) == (hinted.asked, hinted.protected)
    assert hinted.spec.token_ids == IDS
    assert len(hinted.spec.hint) == 40
    assert hinted.spec.group_blocks == plain.spec.group_blocks
    assert hinted.spec.key != plain.spec.key
    assert hinted.demand.bytes > plain.demand.bytes
    more = {"inject": (22, plain.demand.spare), "prefill": (0, 0),
            "native": (plain.demand.blocks, 22)}[delivery]
    assert (hinted.demand.blocks, hinted.demand.spare) == more


def test_other_hints_are_other_jobs_and_an_empty_one_is_none():
    keys = [planned(asking(), **options).spec.key
            for options in ({}, {"hint": ""}, {"hint": "5"}, {"hint": "6"}, {"hint": "5"})]
    assert keys[0] == keys[1]
    assert keys[2] == keys[4]
    assert len(set(keys)) == 3


def test_a_hint_of_the_engine_is_one_of_every_request_that_has_no_other():
    engine = asking(QuickMergeConfig(ratio=0.4, hint="5 6"))
    assert planned(engine).spec.hint == (5, 6)
    assert planned(asking(engine.side.config), hint="7").spec.hint == (7,)
    assert planned(asking(engine.side.config), hint="").spec.hint == ()


def test_documents_that_are_asked_later_can_have_one():
    plan = planned(asking(), query_visible=False, hint="5", preset="cache")
    assert plan.config.effective_saliency == "query"
    assert plan.spec.window == 1


@pytest.mark.parametrize(("facts", "options", "words"), [
    ({"hints": Hints()}, {}, "hint cannot work here: the engine has no tokenizer"),
    ({}, {"hint": "  "}, "has no tokens"),
    ({"max_model_len": N + 1, "trained_length": N}, {},
     "640 prompt tokens and 1 of a hint leaves no room in"),
    ({"has_adapter": False}, {"delivery": "prefill"}, "a hint needs attention"),
])
def test_what_cannot_be_done_is_a_sentence(facts, options, words):
    engine = Engine(**{"hints": HINTS, **facts})
    assert words in reason(engine, **{"hint": "5", **options})


def test_a_score_that_looks_at_nothing_is_an_invalid_option():
    engine = asking(QuickMergeConfig(saliency="entropy"))
    assert reason(engine, hint="5").startswith("invalid option: hint needs saliency='query'")


@pytest.mark.parametrize("tokenizer", [None, Numbers()])
def test_an_engine_that_cannot_read_its_own_hint_says_so(vllm_log, tokenizer):
    Engine(QuickMergeConfig(hint="5"), hints=Hints(tokenizer))
    assert ("no tokenizer" in vllm_log.text) is (tokenizer is None)


def test_auto_gives_a_short_prompt_no_first_token_behind_a_hint():
    engine = asking(no_inject="no adapter")
    engine.add("r")
    arrival = replace(engine.side.tracked["r"].arrival, first=True)
    for options, words in (({}, None), ({"qm_hint": "5"}, "below 1,024")):
        made = plan_or_reason(
            replace(arrival, extra_args=options), engine.side.config, engine.side.facts,
            engine.side.room,
        )
        assert (words is None) is hasattr(made, "spec")
        assert words is None or words in str(made)


def test_the_report_counts_the_prompt_and_names_the_hint():
    engine = asking()
    engine.add("r", hint="5 6 7")
    (job,) = engine.step().jobs
    assert job.hint == (5, 6, 7)
    assert len(job.blocks) == -(-(N + 3) // BLOCK)
    engine.tell(job1=result())
    assert engine.store.free == engine.store.total - 8
    report = engine.side.finished("r", 9)
    assert (report["source_tokens"], report["kept_tokens"]) == (N, 8 * BLOCK + 1)
    assert report["hint_tokens"] == 3


class Shadows:
    """What is asked of vLLM's scheduler."""

    def start(self, handle, shadow, token_ids, salt, last, first) -> None:
        self.started = (list(token_ids), last, first)


@pytest.mark.parametrize("hint", [0, 10])
def test_a_shadow_reads_the_hint_and_its_token_is_nobodys(hint):
    engine = asking()
    engine.add("r")
    tracked = engine.side.tracked["r"]
    tracked.arrival = replace(tracked.arrival, first=True, first_shared=True)
    one, runs = spec(hint=hint, delivery="native"), NativeRuns()
    runs.shadows = shadows = Shadows()
    runs.start(one, [tracked])
    assert shadows.started == (one.read_ids, WINDOW_QUERIES, not hint)
    (run,) = runs.runs.values()
    assert run.shared is not bool(hint)
    steps = [ShadowStep(run.shadow, start, stop, ([start],)) for start, stop in pairwise(
        [0, 300, N - 40, N, one.rows] if hint else [0, 300, N - 40, N]
    )]
    seen = [(each.stop, bool(each.blocks)) for each in runs.progress(steps)]
    told = [(N - 40, False), (N, True), (N + 10, True)]
    assert seen == (told if hint else told[:2])
    assert run.reached == one.rows
    tally, found = Tally(), JobResult([1], {})
    assert runs.complete(1, found, tally) is None
    assert tally.counts["shadow_tokens"] == one.rows


@pytest.mark.parametrize(("hint", "options", "skips", "last"), [
    (0, {}, False, 64), (0, {}, True, N), (10, {}, False, 64), (10, {}, True, N + 10),
    (10, {"query_visible": False}, False, 11), (64, {}, False, 65),
])
def test_a_shadow_computes_the_prompts_last_token_itself(hint, options, skips, last):
    one = spec(hint=hint, delivery="native", **options)
    assert computed_last(one, skips) == last
    known = replace(one, kept=(0, N - 1))
    assert computed_last(known, skips) == last  # what heads choose begins with the one order
    one_choice = replace(known, config=replace(one.config, head_share=0.0))
    assert computed_last(one_choice, skips) == hint + 1


def test_the_queries_of_prompt_and_hint_are_seen():
    one = NativeJob(
        spec(hint=10, delivery="native"), [], None, (None,), torch.device("cpu")
    )
    one.watched = frozenset({"layer"})
    rows = torch.arange(N + 10).float()[:, None, None].expand(-1, 2, 4)
    for start, stop in pairwise([0, 300, N - 3, N + 4, N + 10]):
        one.see("layer", rows[start:stop], start)
    assert torch.equal(one.queries["layer"], rows[-WINDOW_QUERIES:])
    assert one._seen == {"layer": N + 10}
    assert one._count_kept() == 7 * 32 + 1


def test_rows_of_hints_count_where_prompts_go_together():
    assert gather([spec(500, 24), spec(490, 24)], 1024) == [[0], [1]]
    assert gather([spec(500, 24), spec(476, 24)], 1024) == [[0, 1]]


def test_what_a_hint_sees_of_itself_is_left_out():
    weights = torch.randn(3, 5, 20).softmax(-1)
    part = QueryAttention.of(weights).of_rows(slice(15))
    want = QueryAttention.of(weights[:, :, :15])
    for name in ("recent", "question", "energy"):
        assert torch.equal(getattr(part, name), getattr(want, name))
