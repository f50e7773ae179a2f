"""The rehearsal of a start hears what vLLM really calls: each part that is taken out is missed."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
from vllm.distributed.kv_transfer import kv_transfer_state
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT, KVConnectorOutput
from vllm.v1.worker.gpu.kv_connector import ActiveKVConnector
from vllm.v1.worker.kv_connector_model_runner_mixin import KVConnectorModelRunnerMixin

from qm_vllm_patches import checks, scheduler
from qm_vllm_patches.layer_groups import LayerGroupManager
from qm_vllm_patches.rehearsal import ACTS, GROUPS, rehearse

HELD = ("a request held back", "a request held back, scheduling ahead")
V1, V2 = "steps of Model Runner V1", "steps of Model Runner V2"


def missed():
    return {name: problem for name, problem in rehearse() if problem}


def test_the_installed_vllm_plays_its_part():
    assert [name for name, _ in rehearse()] == list(ACTS) == [*HELD, V1, V2]
    assert not missed()


def test_layers_that_keep_less_get_the_placeholder():
    assert rehearse(GROUPS) == [(name, None) for name in GROUPS]


@pytest.mark.parametrize(("name", "otherwise"), [
    ("find_longest_cache_hit", "34 are computed"),
    ("add_local_computed_blocks", "begin at block [0, 0] and not at [0, 1]"),
    ("get_num_skipped_tokens", "begin at block [0, 0] and not at [0, 1]"),
])
def test_a_vllm_that_asks_a_manager_otherwise_has_no_such_layers(monkeypatch, name, otherwise):
    monkeypatch.delattr(LayerGroupManager, name)
    assert [problem for _, problem in rehearse(GROUPS) if problem and otherwise in problem]


def test_it_leaves_nothing_behind_and_says_nothing(vllm_log):
    marker = object()
    kv_transfer_state._KV_CONNECTOR_AGENT = marker
    try:
        assert not missed()
        assert kv_transfer_state._KV_CONNECTOR_AGENT is marker
        assert not [record for record in vllm_log.records if "onnector" in record.message]
    finally:
        kv_transfer_state._KV_CONNECTOR_AGENT = None


def test_a_runner_that_does_nothing_in_steps_without_tokens_is_refused(monkeypatch):
    monkeypatch.setattr(
        KVConnectorModelRunnerMixin, "kv_connector_no_forward",
        staticmethod(lambda step, config: EMPTY_MODEL_RUNNER_OUTPUT),
    )
    assert set(missed()) == {V1}
    with pytest.raises(RuntimeError, match=f"does not fit \\({V1}: what a worker says in a step"):
        checks.require()


def test_a_runner_that_leaves_out_the_hook_of_our_work_is_refused(monkeypatch):
    """vLLM 0.30 left out another one, in which the work was done then: requests hung."""
    monkeypatch.setattr(
        KVConnectorBase_V1, "get_transfer_results",
        lambda self, ids: type("Nothing", (), dict.fromkeys(
            ("finished_sending", "finished_recving", "failed_recving")))(),
    )
    found = missed()
    assert set(found) == {V1, V2}
    for problem in found.values():
        assert problem == (
            "a step without tokens calls bind_connector_metadata, start_load_kv, "
            "build_connector_worker_meta of the connector where bind_connector_metadata, "
            "start_load_kv, get_finished, build_connector_worker_meta are needed in turn"
        )


def test_work_after_its_results_are_asked_for_is_missed(monkeypatch):
    """As it would be in a hook that waits for the drafter of speculative decoding."""

    @contextmanager
    def late(step, defer_finalize=False):
        connector = kv_transfer_state.get_kv_transfer_group()
        connector.bind_connector_metadata(step.kv_connector_metadata)
        connector.start_load_kv(None)
        output = KVConnectorOutput()
        yield output
        output.kv_connector_worker_meta = connector.build_connector_worker_meta()
        connector.get_finished(set())

    monkeypatch.setattr(
        KVConnectorModelRunnerMixin, "maybe_get_kv_connector_output", staticmethod(late)
    )
    assert missed()[V1].startswith("a step with a drafter calls bind_connector_metadata, ")


def test_the_second_runner_is_looked_at_too(monkeypatch):
    monkeypatch.setattr(
        ActiveKVConnector, "no_forward", lambda self, step: EMPTY_MODEL_RUNNER_OUTPUT
    )
    assert set(missed()) == {V2}


@pytest.mark.parametrize(
    ("owner", "name", "instead", "sentence"),
    [
        (Scheduler, "_update_from_kv_xfer_finished", lambda *args: None,
         "what workers say in a step without tokens is not heard (update_connector_output)"),
        (Scheduler, "has_requests", lambda self: False,
         "a request cannot be held back (get_num_new_matched_tokens)"),
        (BlockPool, "cache_full_blocks", lambda self, *args, **kwargs: None,
         "of 34 kept tokens, 2 blocks of which are published, 34 are computed"),
        (scheduler.ShadowScheduler, "_get_local_prefix_cache_hit", lambda self: None,
         "TypeError: "),
        (scheduler.ShadowScheduler, "_tell", lambda *args: None,
         "clients are told [8, 9] where [7, 8, 9] was sampled"),
    ],
)
def test_a_scheduler_that_does_otherwise_is_refused(monkeypatch, owner, name, instead, sentence):
    monkeypatch.setattr(owner, name, instead)
    found = missed()
    assert set(found) == set(HELD)
    assert all(problem.startswith(sentence) for problem in found.values()), found
    with pytest.raises(RuntimeError, match="does not fit"):
        checks.require()
