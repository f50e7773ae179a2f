"""What is heard of a running request: figures of the prompt as it came, and its report so far."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from qm_vllm_patches.true_figures import TrueFigures
from tests.unit.test_scheduler_side import Engine, N, result


def test_who_found_what_by_the_way_it_was_served():
    engine = Engine()
    telling = engine.side.telling
    engine.add("first")
    engine.add("same")
    engine.add("off", enabled=False)
    engine.add("short", ids=range(9))
    engine.step()
    engine.tell(job1=result())
    engine.add("later")
    assert telling.cached_of("first") == (N, 0), "it is encoded, and nothing is looked for"
    assert telling.cached_of("same") == (N, N - 1), "it waited for the first one's job"
    assert telling.cached_of("later") == (N, N - 1), "its result is remembered"
    for name in ("off", "short", "gone"):
        assert telling.cached_of(name) is None, "as vLLM says"
        assert telling.looked_up(name) is None
    assert telling.looked_up("first") == (N, 0)
    for name in ("first", "same", "later"):
        assert engine.start(name) == 0
    report = telling.report_so_far("later", 7)
    assert (report["status"], report["kv_blocks"], report["cached"]) == ("compressed", 7, True)
    assert report == engine.side.finished("later", 7)
    assert telling.report_so_far("off", 20)["status"] == "untouched"
    assert telling.report_so_far("gone", 1) == {}


class Manager:
    """vLLM's, as far as figures are put right."""

    def __init__(self) -> None:
        self.enable_caching, self.seen = True, []
        self.prefix_cache_stats = SimpleNamespace(record=lambda **told: self.seen.append(told))

    def record_prefix_cache_stats(self, request, num_hits) -> None:
        self.seen.append((request.request_id, num_hits))

    def get_block_ids(self, request_id):
        return ([4, 5], [6])


class Stats:
    """vLLM's figures of a prefill."""

    num_cache_creation_tokens = 5

    def set(self, *told) -> None:
        self.told = told


@pytest.fixture
def figures():
    """Of a scheduler whose requests "ours" and "counted" are compressed, all others not."""
    told = {"ours": (N, 12), "counted": (N, 12)}
    teller = SimpleNamespace(
        cached_of=told.get,
        looked_up=lambda name: (0, 0) if name == "counted" else told.get(name),
        report_so_far=lambda name, blocks: {"of": name, "kv_blocks": blocks},
    )
    return TrueFigures(SimpleNamespace(kv_cache_manager=Manager()), teller, "quickmerge")


def test_look_ups_are_counted_once_and_in_source_tokens(figures):
    def look(name: str, preemptions: int = 0) -> None:
        request = SimpleNamespace(request_id=name, num_preemptions=preemptions)
        figures.manager.record_prefix_cache_stats(request, 3)

    for name in ("theirs", "ours", "counted"):
        look(name)
    look("ours", preemptions=1)
    ours = {"num_tokens": N, "num_hits": 12, "preempted": False}
    assert figures.manager.seen == [("theirs", 3), ours, ("ours", 3)]
    figures.manager.enable_caching = False
    look("ours")
    assert len(figures.manager.seen) == 3


@pytest.mark.parametrize(("name", "told"), [("ours", (N, 12, 0)), ("theirs", None)])
def test_a_first_output_carries_the_report_unless_it_is_the_last(figures, name, told):
    output = SimpleNamespace(
        request_id=name, prefill_stats=Stats(), kv_transfer_params=None, finish_reason=None
    )
    figures.first_output(output)
    assert getattr(output.prefill_stats, "told", None) == told
    assert output.kv_transfer_params == {"quickmerge": {"of": name, "kv_blocks": 3}}
    last = SimpleNamespace(
        request_id=name, prefill_stats=Stats(), kv_transfer_params={"x": 1}, finish_reason="stop"
    )
    figures.first_output(last)
    assert last.kv_transfer_params == {"x": 1}
