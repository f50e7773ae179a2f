"""The order of a study, what it repeats, and what it keeps when it is cut off."""

import pytest

from qm_vllm_eval.engines.base import budget, make_row
from qm_vllm_eval.methods import choose_methods
from qm_vllm_eval.sample import Sample
from qm_vllm_eval.study import grid as grid_module
from qm_vllm_eval.study.grid import Grid, run
from qm_vllm_eval.tasks.base import Exhausted


def sample(task, length, index, visible):
    name = f"{task}-{length}-report-{index}" + ("" if visible else "-blind")
    return Sample(
        name, task, "family", "context", "question", ("a",), "a", visible, "all", 4, "essays",
        length, "report", index,
    )


@pytest.fixture
def small(monkeypatch):
    def build(task, *, length, split, index, tokenizer, haystacks, query_visible):
        assert split == "report"
        return sample(task, length, index, query_visible)

    monkeypatch.setattr(grid_module, "build_sample", build)
    return Grid(
        tasks=("one", "two"), methods=tuple(choose_methods(["random", "fp8"])),
        ratios=(0.5, 0.25), samples=2, lengths=(300, 600), visible=(True, False),
        split="report", haystacks=("essays",),
    )


class Memory:
    """A sink in memory."""

    def __init__(self):
        self.rows = []

    def done(self):
        return {(row.sample_id, row.method, row.ratio) for row in self.rows}

    def add(self, rows):
        self.rows += rows


class Echo:
    """An engine that answers at once; fails at a sample if it is told to."""

    tokenizer = None

    def __init__(self, fails=None):
        self.asked, self.fails = [], fails

    def evaluate(self, sample, cells):
        self.asked.append((sample.sample_id, len(cells)))
        for number, cell in enumerate(cells):
            if sample.sample_id == self.fails and number == 2:
                raise KeyboardInterrupt
            yield [make_row(
                sample, cell, prompt_tokens=sample.length, kept_tokens=10, bytes_per_token=8,
                nll=1.0, exact=False, prediction="a", seconds=0.1,
            )]


def test_each_method_has_the_ratios_that_it_can_use(small):
    cells = [(method.name, ratio) for method, ratio in small.cells()]
    assert cells == [
        ("none", 0.0), ("plain", 1.0), ("random", 0.5), ("random", 0.25), ("fp8", 1.0)
    ]
    assert small.size() == 5 * 2 * 2 * 2 * 2


def test_every_task_comes_once_before_any_comes_twice(small):
    names = list(small.names())
    assert [index for _, _, index, _ in names] == [0] * 8 + [1] * 8
    assert len(set(names)) == 16


def test_what_is_there_is_not_measured_again(small):
    sink, engine, rows = Memory(), Echo(), []
    run(small, engine, sink, advanced=lambda count, cost: rows.append(count))
    assert len(sink.rows) == sum(rows) == small.size()
    again, rows = Echo(), []
    run(small, again, sink, advanced=lambda count, cost: rows.append(count))
    assert again.asked == []
    assert sum(rows) == small.size()
    sink.rows = [row for row in sink.rows if (row.index, row.method) != (1, "fp8")]
    run(small, again, sink)
    assert len(again.asked) == 8
    assert {cells for _, cells in again.asked} == {1}


def test_rows_of_a_sample_that_was_cut_off_are_kept(small):
    sink = Memory()
    with pytest.raises(KeyboardInterrupt):
        run(small, Echo(fails="two-300-report-0"), sink)
    assert [row.task for row in sink.rows] == ["one"] * 5 + ["two"] * 2
    run(small, Echo(), sink)
    assert len({(r.sample_id, r.method, r.ratio) for r in sink.rows}) == small.size()


def test_row_figures(small):
    row = make_row(
        sample("one", 300, 0, True), small.cells()[2], prompt_tokens=300, kept_tokens=75,
        bytes_per_token=100, nll=0.5, exact=True, prediction="So: A.", seconds=1.0,
    )
    assert (row.kept_ratio, row.kv_bytes, row.match, row.exact) == (0.25, 7500, 1.0, 1.0)
    failed = make_row(sample("one", 300, 0, True), small.cells()[2], prompt_tokens=300,
                      status="out of memory")
    assert failed.status == "out of memory"
    assert failed.nll != failed.nll
    assert failed.match != failed.match


@pytest.mark.parametrize(("tokens", "ratio", "block", "k"), [
    (1000, 0.25, 1, 250), (1000, 0.0625, 1, 63), (1000, 1.0, 1, 1000), (40, 0.0625, 1, 8),
    (1000, 0.25, 32, 225), (1000, 1.0, 32, 1000), (768, 1 / 2.4, 1, 320), (5, 0.5, 1, 5),
])
def test_budget_is_the_ceiling_in_whole_blocks(tokens, ratio, block, k):
    assert budget(tokens, ratio, block) == k


def test_a_task_without_more_documents_keeps_its_samples(small, monkeypatch, caplog):
    first = grid_module.build_sample

    def build(task, *, index, **rest):
        if (task, index) == ("two", 1):
            raise Exhausted("two has 1 samples of 300 tokens")
        return first(task, index=index, **rest)

    monkeypatch.setattr(grid_module, "build_sample", build)
    memory, done = Memory(), []
    run(small, Echo(), memory, advanced=lambda rows, cost: done.append(rows))
    assert sum(done) == small.size()
    assert {(row.task, row.index) for row in memory.rows} == {("one", 0), ("one", 1), ("two", 0)}
    assert "two-300-report-1 is left out: two has 1 samples of 300 tokens" in caplog.text
