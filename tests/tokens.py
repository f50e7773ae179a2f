"""A tokenizer whose texts are numbers, and engines that read hints with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tests.engines import scheduler_of


class Numbers:
    """``"5 6"`` is the tokens 5 and 6."""

    all_special_ids: tuple[int, ...] = ()
    chat_template = None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        ids = [int(part) for part in text.split()]
        return [1, *ids] if add_special_tokens else ids


def text_of(ids: Sequence[int]) -> str:
    """What these tokens are made of."""
    return " ".join(map(str, ids))


def reading_hints(llm: Any) -> Any:
    """An engine of a tiny model, which has no tokenizer of its own."""
    from qm_vllm.engine.requests.hints import Hints

    side = scheduler_of(llm).connector.scheduler_side
    side.facts = replace(side.facts, hints=Hints(Numbers()))
    return llm
