"""Queries about clips through a prior in a real engine: the transformers class's windows."""

from __future__ import annotations

import pytest
import torch

from qm_vllm.prior import PriorConfig
from qm_vllm_eval.datasets.ego4d_synthetic import SyntheticSpec, write_synthetic
from qm_vllm_eval.ego4d.decode import TransformersBins, windows
from qm_vllm_eval.ego4d.reduce import reduce
from qm_vllm_eval.ego4d.replica import PriorReplica
from qm_vllm_eval.ego4d.task import Ego4dTask
from qm_vllm_eval.ray.table import row_of
from qm_vllm_eval.ray.work import EngineSettings
from tests.priors import random_prior

SPEC = SyntheticSpec(videos=2, clips_per_video=1, queries_per_clip=2, events_per_clip=3, kinds=4,
                     width=8, clip_seconds=(60, 80), event_seconds=(3.2, 8))
BINS, TIMES = 16, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = random_prior(PriorConfig(
        input_size=8 + TIMES, time_features=TIMES, hidden_size=128, intermediate_size=160,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, num_tokens=64,
        num_time_bins=BINS, max_position_embeddings=1024,
    ), std=0.2, statistics=False)
    target = tmp_path_factory.mktemp("prior")
    model.save_pretrained(target)
    return target


@pytest.fixture(scope="module")
def replica(folder):
    replica = PriorReplica(EngineSettings(
        model=str(folder), dtype="float32", extra={"kv_cache_memory_bytes": 256 << 20},
    ))
    yield replica
    replica.close()


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    data = tmp_path_factory.mktemp("nlq")
    file = write_synthetic(data, "val", SPEC)
    return Ego4dTask(str(file), str(data / "features"), (1.0, 0.4), width=8, most_tokens=900)


def test_the_windows_are_those_of_the_transformers_class(replica, folder, task):
    config, reference = PriorConfig.from_pretrained(folder), TransformersBins(folder)
    units = list(task.units())
    for unit in units:
        replica.add(unit)
    outcomes = replica.collect()
    assert [outcome.unit for outcome in outcomes] == units
    for unit, outcome in zip(units, outcomes, strict=True):
        prompt = unit.prompt
        reduced = reduce(
            prompt["features"], unit.ratio, way=prompt["way"], times=TIMES, name=unit.row_id
        )
        (want,) = windows(
            reference, config, [reduced.states], [prompt["query"]], [prompt["seconds"]]
        )
        report = outcome.answer.report
        assert [tuple(span) for span in report["windows"]] == want
        assert report["source_tokens"] == len(prompt["features"])
        assert report["kept_tokens"] == len(reduced.kept)
        row = row_of(outcome, task)
        assert row["status"] == "ok"
        assert 0 <= row["mIoU"] <= 1


def test_log_probabilities_agree(replica, folder):
    states = [torch.randn(size, 8 + TIMES) for size in (1, 17, 90)]
    ids = [[3, 9], [60], [1, 2, 3, 64 + 5]]
    for mine, want in zip(
        replica.reader.bins(states, ids), TransformersBins(folder).bins(states, ids), strict=True
    ):
        torch.testing.assert_close(mine, want, atol=1e-4, rtol=0)


def test_a_clip_of_another_width_fails_alone(replica, task):
    good, bad = list(task.units())[:2]
    bad.prompt["features"] = torch.randn(40, 5)
    for unit in (bad, good):
        replica.add(unit)
    first, second = replica.collect()
    assert "must be [K >= 1, 12], not [16, 9]" in first.reason
    assert second.answer is not None
