"""The report that a client finds in ``RequestOutput.kv_transfer_params["quickmerge"]``."""

from __future__ import annotations

from typing import Any

from qm_vllm.engine.facts import EngineFacts
from qm_vllm.engine.requests.memo import Outcome
from qm_vllm.engine.requests.planning import RequestPlan
from qm_vllm.turns import Turn


def untouched_report(
    source_tokens: int, num_blocks: int, facts: EngineFacts, reason: str
) -> dict[str, Any]:
    """A request that went to plain vLLM. Blocks: held when it finished."""
    return {
        "status": "untouched",
        "reason": reason,
        "source_tokens": source_tokens,
        "kept_tokens": source_tokens,
        **_memory(num_blocks, facts),
    }


def compressed_report(
    source_tokens: int,
    num_blocks: int,
    facts: EngineFacts,
    plan: RequestPlan,
    outcome: Outcome,
    turns: tuple[Turn, ...],
    *,
    cached: bool,
    notes: list[str],
) -> dict[str, Any]:
    """A request that ran from K positions. ``seconds``: worker time of its job."""
    kept = len(outcome.kept)
    report = {
        "status": "compressed",
        "source_tokens": source_tokens,
        "kept_tokens": kept,
        "ratio": kept / source_tokens,
        **_memory(num_blocks, facts),
        "num_layers": facts.num_layers,
        "score_layers": list(plan.score_layers),
        "delivery": plan.config.delivery,
        "kept_turns": [list(turn) for turn in turns],
        "cached": cached,
        **outcome.figures,
    }
    if notes:
        report["notes"] = list(notes)
    if outcome.details is not None:
        report["details"] = outcome.details
    return report


def _memory(num_blocks: int, facts: EngineFacts) -> dict[str, int]:
    return {
        "kv_blocks": num_blocks,
        "block_size": facts.block_size,
        "kv_bytes": num_blocks * facts.block_bytes,
    }
