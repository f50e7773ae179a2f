"""The worker's half without an engine: models of any shape, jobs that fail, other connectors."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from qm_vllm import QuickMergeConfig
from qm_vllm.engine.jobs import worker_side as module
from qm_vllm.engine.jobs.worker_side import WorkerSide
from qm_vllm.engine.messages import BlockCopy, JobSpec, StepMessage
from qm_vllm.engine.worker import QuickMergeWorkerMixin
from tests.settings import settings


def side() -> WorkerSide:
    return WorkerSide(QuickMergeConfig(), 32)


def spec(job: int, **changes) -> JobSpec:
    values = {"config": QuickMergeConfig(), "blocks": (1, 2)} | changes
    return JobSpec(job, f"k{job}", [7] * 40, values["config"], 4, (1, 2), [], 32, (), None,
                   values["blocks"])


class Llama:
    """Has a known name, and layers that nothing is known of."""

    def __init__(self, layers) -> None:
        self.model = SimpleNamespace(layers=layers)


Llama.__name__ = "LlamaForCausalLM"


class Sour:
    """Raises whatever it is asked."""

    def __getattr__(self, name: str):
        raise RuntimeError(f"no {name} here")


Sour.__name__ = "LlamaForCausalLM"


@pytest.mark.parametrize("model", [
    object(), None, 7, Sour(), Llama([object()]), Llama(5),
    Llama([SimpleNamespace(self_attn=None)]), torch.nn.Linear(2, 2),
], ids=["object", "none", "number", "sour", "layer", "no list", "no attention", "module"])
def test_any_model_is_survived_and_the_reason_told(vllm_log, model):
    made = side()
    made.attach_model(model, torch.float32, torch.device("cpu"))
    assert made.problem
    assert made.start_message().problem == made.problem
    assert made.problem in vllm_log.text
    made.work(StepMessage(jobs=[spec(1)]))
    (result,) = made.collect().results.values()
    assert made.problem in result.error
    assert not made.jobs


def test_a_failed_jobs_traceback_is_in_the_log(vllm_log):

    class Runner:
        device, view = torch.device("cpu"), SimpleNamespace(layers=[None] * 6)
        reach = None

        def embed(self, ids):
            raise MemoryError("not enough for these rows")

    made = side()
    made.runner, made.problem = Runner(), None
    made.cache = SimpleNamespace(block_size=32)
    made.work(StepMessage(jobs=[spec(5)]))
    told = [record.exc_info[1] for record in vllm_log.records if record.exc_info]
    assert {type(error) for error in told} == {MemoryError}
    assert "embed" in "".join(frame for frame in vllm_log.text.splitlines())
    assert made.collect().results[5].error == "MemoryError: not enough for these rows"


@pytest.mark.parametrize("parts", [(), (0, 32, 64)])
def test_no_position_is_asked_for_behind_a_tables_end(parts):
    made = side()
    made.runner = SimpleNamespace(view=SimpleNamespace(layers=[]), reach=40)
    made.problem = None
    long = replace(spec(1), token_ids=list(range(64)), parts=parts)
    made.work(StepMessage(jobs=[long]))
    error = made.collect().results[1].error
    assert error == "the rotary embedding knows 40 positions, 64 are needed"


def test_a_job_that_cannot_begin_fails_alone(vllm_log, monkeypatch):
    made = side()
    made.runner = SimpleNamespace(view=SimpleNamespace(layers=[]), reach=None)
    made.problem = None

    def broken(*_):
        raise ArithmeticError("no start")

    monkeypatch.setattr(module, "CompressionJob", broken)
    monkeypatch.setattr(module.WorkerSide, "_cache_of", lambda *_: None)
    made.work(StepMessage(jobs=[spec(1), spec(2)]))
    assert {r.error for r in made.collect().results.values()} == {"ArithmeticError: no start"}


def test_a_copy_that_fails_is_reported_by_its_blocks():
    made = side()
    made.load(StepMessage(copies=[BlockCopy("r", [1, 2], [8, 9])]))
    assert made.take_failed_blocks() == {8, 9}
    assert made.take_failed_blocks() == set()


@pytest.mark.parametrize("connector", [SimpleNamespace(), None])
def test_another_connector_is_refused_with_a_sentence(connector):
    """As MultiConnector, inside which ours would never get the model."""
    worker = QuickMergeWorkerMixin()
    with pytest.raises(RuntimeError, match="needs QuickMergeConnector as the engine's KV conn"):
        worker.model_loaded(connector, settings(), object(), torch.device("cpu"), None)


@pytest.mark.parametrize(("profiled", "taken"), [(True, True), (False, False)])
def test_memory_is_taken_from_the_cache_only_where_it_was_measured(profiled, taken):
    worker = QuickMergeWorkerMixin()
    kept = worker.memory_to_keep(settings(), 1 << 30, profiled=profiled)
    assert (kept > 0) is taken
    assert 0 < worker._job_bytes <= 0.1 * (1 << 30)
