"""The report that a client finds in ``RequestOutput.kv_transfer_params["quickmerge"]``."""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

from qm_vllm.engine.facts import EngineFacts
from qm_vllm.engine.requests.memo import Outcome
from qm_vllm.engine.requests.planning import RequestPlan
from qm_vllm.engine.requests.tracked import Tracked
from qm_vllm.reports import REFUSED
from qm_vllm.turns import SCHEMAS, room_for_turns


def report_of(tracked: Tracked, num_blocks: int, facts: EngineFacts) -> dict[str, Any]:
    """What became of a request that has ended.

    Args:
        num_blocks: that it held when it ended.
    """
    tokens = tracked.arrival.tokens
    if tracked.outcome is None:
        reason = tracked.reason or "ended before the compression was done"
        return untouched_report(tokens, num_blocks, facts, reason)
    assert tracked.plan is not None
    return compressed_report(
        tokens, num_blocks, facts, tracked.plan, tracked.outcome, tracked.details,
        cached=tracked.cached, notes=tracked.notes, waited=tracked.waited,
        begun=bool(tracked.begun),
    )


def untouched_report(
    source_tokens: int, num_blocks: int, facts: EngineFacts, reason: str
) -> dict[str, Any]:
    """A request that went to plain vLLM, or that was refused because that cannot serve it.

    Blocks: held when it finished.
    """
    return {
        "status": REFUSED if facts.beyond(source_tokens) else "untouched",
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
    details: dict[str, Any] | None,
    *,
    cached: bool,
    notes: list[str],
    waited: float,
    begun: bool = False,
) -> dict[str, Any]:
    """A request that ran from K positions.

    ``seconds``: worker time of its job; ``seconds_waiting``: from its arrival to its result;
    ``first_token``: whether it has seen the whole "prompt" or the "kept" positions alone;
    ``hint_tokens``: of a hint, that looked at the prompt and are no part of it;
    ``kept_by_layers``: how many each layer keeps, ``kept_tokens`` in the mean.
    """
    kept = plan.spec.mean_kept(len(outcome.kept))
    report: dict[str, Any] = {
        "status": "compressed",
        "source_tokens": source_tokens,
        "kept_tokens": kept,
        "ratio": kept / source_tokens,
        **_memory(num_blocks, facts),
        "num_layers": facts.num_layers,
        "score_layers": list(plan.spec.score_layers),
        "delivery": plan.config.delivery,
        "kept_turns": [list(turn) for turn in plan.spec.turns],
        "cached": cached,
        "seconds_waiting": waited,
        "first_token": "prompt" if begun else "kept",
        **outcome.figures,
    }
    if plan.spec.group_kept:
        sizes = plan.spec.group_kept
        report["kept_by_layers"] = {"looking_up": max(sizes), "others": min(sizes)}
    if plan.spec.hint:
        report["hint_tokens"] = len(plan.spec.hint)
    notes = [*notes, *_crowded_out(plan, outcome, source_tokens)]
    notes += _crowded(plan, kept, source_tokens)
    if notes:
        report["notes"] = notes
    if details is not None:
        report["details"] = details
    return report


def _crowded_out(plan: RequestPlan, outcome: Outcome, source_tokens: int) -> list[str]:
    """A sentence for each turn that should have stayed whole and did not."""
    room = int(room_for_turns(plan.config, source_tokens))
    return [
        f"a turn with schemas of tools ({end - start} tokens) did not stay whole: keep_roles does "
        "not name its role" if role == SCHEMAS else
        f"the {'last user' if role == 'user' else role} turn ({end - start} tokens) did not stay "
        f"whole: turns that do may take half of the budget, {room} tokens, together"
        for role, start, end in plan.crowded_out
        if bisect_left(outcome.kept, end) - bisect_left(outcome.kept, start) < end - start
    ]


def _crowded(plan: RequestPlan, kept: int, source_tokens: int) -> list[str]:
    """A sentence where the protected positions left nothing of the budget to choose."""
    if plan.asked == source_tokens or plan.protected < plan.asked:
        return []
    return [
        f"{plan.protected} positions are protected and the budget is {plan.asked}, so "
        f"{kept - plan.protected} of the rest stayed; protect fewer or keep more"
    ]


def _memory(num_blocks: int, facts: EngineFacts) -> dict[str, int]:
    return {
        "kv_blocks": num_blocks,
        "block_size": facts.block_size,
        "kv_bytes": num_blocks * facts.block_bytes,
    }
