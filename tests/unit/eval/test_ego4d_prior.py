"""From features to five windows by a prior."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from qm_vllm.prior import PriorConfig
from qm_vllm.prior.batches import BatchMaker
from qm_vllm.prior.data import Sample
from qm_vllm.prior.side_inputs import time_features
from qm_vllm_eval.datasets.ego4d_nlq import Ego4dNlq
from qm_vllm_eval.datasets.ego4d_synthetic import SyntheticSpec, write_synthetic
from qm_vllm_eval.ego4d.decode import TransformersBins, windows
from qm_vllm_eval.ego4d.manifest import write_manifest
from qm_vllm_eval.ego4d.reduce import reduce
from qm_vllm_eval.ego4d.report import comparison, markdown
from qm_vllm_eval.ego4d.task import Ego4dTask, chance, predictions
from qm_vllm_eval.localisation import iou
from qm_vllm_eval.ray.table import row_of
from qm_vllm_eval.ray.work import Answer, Outcome
from tests.priors import random_prior

SPEC = SyntheticSpec(videos=2, clips_per_video=1, queries_per_clip=2, events_per_clip=3, kinds=4,
                     width=8, clip_seconds=(60, 80), event_seconds=(3.2, 8))
BINS, TIMES = 16, 4


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nlq")
    return list(Ego4dNlq(write_synthetic(folder, "val", SPEC), folder / "features"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = random_prior(PriorConfig(
        input_size=8 + TIMES, time_features=TIMES, hidden_size=32, intermediate_size=48,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, num_tokens=64,
        num_time_bins=BINS,
    ), std=0.4, statistics=False)
    target = tmp_path_factory.mktemp("prior")
    model.save_pretrained(target)
    return target


def test_merged_as_in_training(rows, tmp_path):
    features = rows[0].features
    torch.save(features, tmp_path / "clip.pt")

    class Encoder:
        hidden_size, device = 8, torch.device("cpu")

        def stream(self, source, *, window):
            from qm_vllm.encoders import load_encoder

            yield from load_encoder(str(source)).stream(None, window=window)

    config = PriorConfig(input_size=8 + TIMES, time_features=TIMES, num_time_bins=BINS)
    maker = BatchMaker(Encoder(), config, 4096, 0)
    batch = maker.fixed([Sample(tmp_path / "clip.pt")], 0.4)
    mine = reduce(features, 0.4, times=TIMES)
    torch.testing.assert_close(mine.states, batch.states[0])


def test_random_tokens_are_as_many_and_repeat(rows):
    features = rows[0].features
    ours = reduce(features, 1 / 2.4)
    one, again, other = (
        reduce(features, 1 / 2.4, way="random", name=name) for name in ("a", "a", "b")
    )
    assert len(one.kept) == len(ours.kept) == -(-features.shape[0] * 10 // 24)
    assert torch.equal(one.states, again.states)
    assert not torch.equal(one.kept, other.kept)
    with pytest.raises(ValueError, match="must be one of quickmerge, random"):
        reduce(features, 0.5, way="even")


def test_all_tokens_stay_at_ratio_one(rows):
    features = rows[0].features
    whole = reduce(features, 1.0, times=TIMES)
    count = features.shape[0]
    assert torch.equal(whole.states[:, :8], features)
    assert torch.equal(whole.states[:, 8:], time_features(torch.arange(count), count, TIMES))


class Told:
    """Says the bins it was told, with some doubt."""

    def __init__(self, first, last):
        self.first, self.last = first, last

    def bins(self, states, ids):
        found = []
        for after in ids:
            row = torch.full((BINS,), -8.0)
            row[self.last if len(after) > 3 else self.first] = 0.0
            found.append(row.log_softmax(-1))
        return found


def test_windows_are_ordered_pairs_of_the_likeliest_bins():
    config = PriorConfig(input_size=12, time_features=4, num_tokens=64, num_time_bins=BINS)
    (spans,) = windows(Told(3, 6), config, [torch.zeros(5, 12)], ["find the cup"], [160.0])
    assert spans[0] == (30.0, 70.0)
    assert len(set(spans)) == 5
    assert all(start < end for start, end in spans)


def test_the_joint_probability_orders_the_windows(rows, folder):
    config = PriorConfig.from_pretrained(folder)
    reader = TransformersBins(folder)
    states = [reduce(rows[0].features, 0.4, times=TIMES).states]
    (spans,) = windows(reader, config, states, [rows[0].query], [16.0])
    from qm_vllm.prior.side_inputs import hashed_words

    ids = hashed_words(rows[0].query, 64)
    (first,) = reader.bins(states, [ids])
    scores = {}
    for start in first.topk(5).indices.tolist():
        (last,) = reader.bins(states, [[*ids, 64 + start]])
        for end in range(start, BINS):
            scores[float(start), float(end + 1)] = float(first[start] + last[end])
    assert spans == sorted(scores, key=lambda span: -scores[span])[:5]


def test_a_manifest_holds_each_clip_once_and_its_spans(rows, tmp_path):
    manifest = write_manifest(rows, tmp_path)
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    assert len(lines) == len(rows) == 4
    assert len({line["path"] for line in lines}) == len(list((tmp_path / "clips").iterdir())) == 2
    for line, row in zip(lines, rows, strict=True):
        assert line["query"] == row.query
        span = tuple(share * row.clip_seconds for share in line["span"])
        assert iou(span, row.window) == pytest.approx(1)
        assert torch.equal(torch.load(tmp_path / line["path"], weights_only=True), row.features)
    with pytest.raises(ValueError, match="no query"):
        write_manifest([], tmp_path)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("task")
    file = write_synthetic(folder, "val", SPEC)
    return Ego4dTask(str(file), str(folder / "features"), (1.0, 0.5), width=8, most_tokens=1000)


def finished(task, spans):
    """Rows of a run whose engine found these windows for everything."""
    rows = []
    for unit in task.units():
        count = len(unit.prompt["features"])
        report = {"windows": spans, "source_tokens": count, "kept_tokens": int(count * unit.ratio)}
        rows.append(row_of(Outcome(unit, Answer([], "", None, report, 0.0, 1.0)), task))
    return rows


def test_each_query_runs_whole_merged_and_around_random_tokens(task):
    units = list(task.units())
    assert len(units) == len({unit.key for unit in units}) == 12
    assert [(u.ratio, u.prompt["way"]) for u in units[:3]] == [
        (1.0, "quickmerge"), (0.5, "quickmerge"), (0.5, "random")
    ]
    assert all(not unit.failure for unit in units)


def test_a_clip_that_is_too_long_has_a_reason(task):
    short = Ego4dTask(task.annotations, task.features, (1.0,), width=8, most_tokens=20)
    assert all("at most 20 fit" in unit.reason for unit in short.units())


def test_the_comparison_has_a_line_for_each_way_and_chance(task):
    rows = finished(task, [[0.0, 5.0], [5.0, 20.0]])
    source = Ego4dNlq(Path(task.annotations), Path(task.features))
    lines = comparison(rows, chance(iter(source)))
    assert [(line["way"], line["ratio"], line["queries"]) for line in lines] == [
        ("quickmerge", 1.0, 4), ("quickmerge", 0.5, 4), ("random", 0.5, 4), ("chance", 0.0, 4)
    ]
    truths = [row.window for row in source]
    mean = sum(iou((0.0, 5.0), truth) for truth in truths) / 4
    assert lines[0]["mIoU"]["mean"] == pytest.approx(mean)
    assert lines[0]["mIoU"]["low"] <= mean <= lines[0]["mIoU"]["high"]
    assert "| all | 4 |" in markdown(lines)
    assert "| random, 2x | 4 |" in markdown(lines)
    named = predictions(rows, 0.5, "random")
    assert {one.key for one in named} == {row.key for row in source}
