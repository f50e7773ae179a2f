"""What vLLM does to requests when it runs out of blocks, done at a chosen moment."""

from __future__ import annotations


def preempt(scheduler, victims=None, **options):
    """Preempt these requests; all that run where none are named."""
    for victim in list(scheduler.running if victims is None else victims):
        scheduler.running.remove(victim)
        scheduler._preempt_request(victim, 0.0, **options)


def forget_blocks(scheduler, *, used=False):
    """Nothing of what is not in use is found in the prefix cache.

    Args:
        used: nor what is: where vLLM schedules ahead, blocks go back some steps after a preemption.
    """
    pool = scheduler.kv_cache_manager.block_pool
    for block in pool.blocks:
        if (used or block.ref_cnt == 0) and not block.is_null:
            pool._maybe_evict_cached_block(block)
