"""Which turns of a conversation stay whole, once it is known where they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from qm_vllm.config import QuickMergeConfig

Turn = tuple[str, int, int]
"""Role, first position, position behind the last one."""

SCHEMAS = "schemas"
"""Role of a turn with schemas of tools whose own role nobody wanted whole."""


def wanted_turns(config: QuickMergeConfig, turns: Sequence[Turn]) -> list[Turn]:
    """The turns that ``config.keep_roles`` names, in their order, whatever their length.

    "last_user" is the last turn that a person wrote, which in an agent's conversation is the task:
    results of tools behind it have a role of their own, also where the template shows them as
    the user's.
    """
    wanted = {"system", "last_user"} if config.keep_roles == "auto" else set(config.keep_roles)
    users = [i for i, (role, _, _) in enumerate(turns) if role == "user"]
    return [
        turn for i, turn in enumerate(turns)
        if turn[0] in wanted or ("last_user" in wanted and users and i == users[-1])
    ]


def room_for_turns(config: QuickMergeConfig, num_tokens: int) -> float:
    """Tokens that turns may take under "auto": half of the budget of a prompt of N tokens."""
    room = (config.ratio or config.DEFAULT_RATIO) * num_tokens / 2
    return room if config.max_kept is None else min(room, config.max_kept / 2)


def beside_budget(
    config: QuickMergeConfig, schemas: Sequence[Turn], num_tokens: int
) -> tuple[QuickMergeConfig, list[Turn]]:
    """The system turns with schemas of tools that stay whole on top of a prompt's budget.

    Without them calls do not parse (``scripts/agent_policy.py``), and in short prompts they alone
    are more than the budget. So with ``keep_roles="auto"`` the ratio is that of the other tokens.

    Args:
        schemas: turns that hold schemas. num_tokens: N.

    Returns:
        The configuration with that budget, and the turns: none where the configuration says
        otherwise what stays.
    """
    others = (config.max_kept, config.alpha, config.max_error)
    if config.keep_roles != "auto" or any(one is not None for one in others):
        return config, []
    turns = [turn for turn in schemas if turn[0] == "system"]
    if not turns:
        return config, []
    size = sum(end - start for _, start, end in turns)
    kept = size + math.ceil((config.ratio or config.DEFAULT_RATIO) * (num_tokens - size))
    return replace(config, min_kept=max(config.min_kept, kept)), turns


def kept_turns(
    config: QuickMergeConfig, turns: Sequence[Turn], num_tokens: int,
    beside: Sequence[Turn] = (),
) -> list[Turn]:
    """The turns that ``config.keep_roles`` protects.

    "auto" stands for the system turns and the last user turn, as long as these take up at most
    half of the budget: a longer one holds the document itself and is compressed like the rest.
    Roles that were named are kept whatever their length.

    Args:
        turns: all turns of the prompt in their order. num_tokens: N.
        beside: those of them that stay on top of the budget (:func:`beside_budget`).
    """
    found = wanted_turns(config, turns)
    if config.keep_roles != "auto":
        return found
    room = room_for_turns(config, num_tokens)
    kept = list(beside)
    others = [turn for turn in found if turn not in beside]
    for turn in sorted(others, key=lambda turn: turn[2] - turn[1]):
        room -= turn[2] - turn[1]
        if room < 0:
            break
        kept.append(turn)
    return sorted(kept, key=lambda turn: turn[1])
