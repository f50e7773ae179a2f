"""Nothing may stay in an engine, or in the plug-in, after the requests that came and went."""

from __future__ import annotations

from contextlib import contextmanager

from qm_vllm_patches.company import split
from qm_vllm_patches.connector import ConnectorBase
from tests.engines import random_prompt, scheduler_of
from tests.integration.generate import greedy, run


@contextmanager
def left_empty(llm):
    """An engine whose caches are empty, in which nothing may be left afterwards."""
    from vllm.distributed.kv_transfer import get_kv_transfer_group

    scheduler = scheduler_of(llm)
    scheduler.reset_prefix_cache(reset_connector=True)
    idle = scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
    yield
    run(llm, [random_prompt(8, 0)], greedy(2))  # one more step delivers the last releases
    side = split(scheduler.connector, ConnectorBase)[0].scheduler_side
    worker = split(get_kv_transfer_group(), ConnectorBase)[0].worker_side
    for held in (
        side.tracked, side.board.entries, side.board.queue, worker.jobs, side.native.runs,
        side.native.new, scheduler.shadows.live, scheduler.shadows.limits, worker.native.jobs,
    ):
        assert not held
    assert not scheduler.requests
    assert scheduler.kv_cache_manager.block_pool.get_num_free_blocks() == idle
