"""Token ids of hints: texts that say what will be asked of a prompt."""

from __future__ import annotations

from typing import Any

from qm_vllm.config import ConfigError
from qm_vllm.layers import WINDOW_QUERIES


class Hints:
    """Reads hints with the served model's tokenizer.

    Attributes:
        problem: why none can be read; None if they can.
    """

    def __init__(self, tokenizer: Any = None) -> None:
        self._tokenizer = tokenizer
        self.problem = (
            "the engine has no tokenizer (skip_tokenizer_init)" if tokenizer is None else None
        )

    def ids(self, text: str) -> tuple[int, ...]:
        """The last tokens of a hint, at most as many as there are queries that look; () of none.

        It stands behind a prompt, so nothing is put before it, no token that begins a text either.

        Raises:
            ConfigError: there is no tokenizer, or it makes no token of the text.
        """
        if not text:
            return ()
        if self.problem:
            raise ConfigError(f"hint cannot work here: {self.problem}; leave it out")
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        if not ids:
            raise ConfigError(f"hint={text!r} has no tokens; leave it out")
        return tuple(int(one) for one in ids[-WINDOW_QUERIES:])
