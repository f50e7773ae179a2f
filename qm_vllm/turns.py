"""Which turns of a conversation stay whole, once it is known where they are."""

from __future__ import annotations

from collections.abc import Sequence

from qm_vllm.config import QuickMergeConfig

Turn = tuple[str, int, int]
"""Role, first position, position behind the last one."""


def goes_on(turns: Sequence[Turn]) -> bool:
    """Whether a conversation has been answered before: an answer stands before its last turn."""
    return any(role == "assistant" for role, _, _ in turns[:-1])


def kept_turns(config: QuickMergeConfig, turns: Sequence[Turn], num_tokens: int) -> list[Turn]:
    """The turns that ``config.keep_roles`` protects.

    "auto" stands for the system turns and the last user turn, as long as these take up at most
    half of the budget: a longer one holds the document itself and is compressed like the rest.
    Roles that were named are kept whatever their length.

    Args:
        turns: all turns of the prompt in their order. num_tokens: N.
    """
    wanted = {"system", "last_user"} if config.keep_roles == "auto" else set(config.keep_roles)
    users = [i for i, (role, _, _) in enumerate(turns) if role == "user"]
    found = [
        turn for i, turn in enumerate(turns)
        if turn[0] in wanted or ("last_user" in wanted and users and i == users[-1])
    ]
    if config.keep_roles != "auto":
        return found
    room = (config.ratio or config.DEFAULT_RATIO) * num_tokens / 2
    if config.max_kept is not None:
        room = min(room, config.max_kept / 2)
    kept: list[Turn] = []
    for turn in sorted(found, key=lambda turn: turn[2] - turn[1]):
        room -= turn[2] - turn[1]
        if room < 0:
            break
        kept.append(turn)
    return sorted(kept, key=lambda turn: turn[1])
