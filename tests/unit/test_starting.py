"""What an engine says of the plug-in when it starts."""

from __future__ import annotations

import pytest

from qm_vllm import QuickMergeConfig
from qm_vllm.engine.messages import WorkerStart
from tests.unit.test_scheduler_side import Engine


@pytest.mark.parametrize(("changes", "options", "warned"), [
    ({"no_inject": "OPT has no adapter"}, {"delivery": "inject"}, True),
    ({"no_native": "recurrent"}, {"delivery": "native"}, True),
    ({"no_inject": "OPT has no adapter", "no_native": "recurrent"}, {}, True),
    ({"no_inject": "OPT has no adapter"}, {}, False),
    ({"no_inject": "OPT has no adapter"}, {"delivery": "prefill"}, False),
    ({"no_inject": "OPT has no adapter"}, {"enabled": False}, False),
    ({}, {}, False),
])
def test_an_engine_whose_requests_all_pass_says_so_once(vllm_log, changes, options, warned):
    engine = Engine(QuickMergeConfig(**options), **changes)
    for name in "ab":
        engine.add(name)
    # One that passes two loggers with handlers (once vLLM was imported) is there twice.
    lines = {id(record) for record in vllm_log.records if "untouched" in record.getMessage()}
    assert len(lines) == int(warned)


def test_a_worker_that_cannot_run_the_layers_is_told_at_start(vllm_log):
    engine = Engine()
    engine.side.workers_started([WorkerStart(1 << 30, "layer 3 uses a sliding window")])
    assert "layer 3 uses a sliding window" in vllm_log.text
