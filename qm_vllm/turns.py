"""Which turns of a conversation stay whole, once it is known where they are."""

from __future__ import annotations

from collections.abc import Sequence

from qm_vllm.config import QuickMergeConfig

Turn = tuple[str, int, int]
"""Role, first position, position behind the last one."""


def goes_on(turns: Sequence[Turn]) -> bool:
    """Whether a conversation has been answered before: an answer stands before its last turn.

    A call of a tool is an answer, too: what came before it was prefilled when it was made.
    """
    return any(role == "assistant" for role, _, _ in turns[:-1])


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


def kept_turns(config: QuickMergeConfig, turns: Sequence[Turn], num_tokens: int) -> list[Turn]:
    """The turns that ``config.keep_roles`` protects.

    "auto" stands for the system turns and the last user turn, as long as these take up at most
    half of the budget: a longer one holds the document itself and is compressed like the rest.
    Roles that were named are kept whatever their length.

    Args:
        turns: all turns of the prompt in their order. num_tokens: N.
    """
    found = wanted_turns(config, turns)
    if config.keep_roles != "auto":
        return found
    room = room_for_turns(config, num_tokens)
    kept: list[Turn] = []
    for turn in sorted(found, key=lambda turn: turn[2] - turn[1]):
        room -= turn[2] - turn[1]
        if room < 0:
            break
        kept.append(turn)
    return sorted(kept, key=lambda turn: turn[1])
