"""What every frozen encoder has in common: its windows, its interface, its errors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor


class EncoderError(ValueError):
    """Something the user can change; the message is a sentence that says what."""


@dataclass(frozen=True, eq=False)
class Window:
    """Consecutive tokens of a source with their states in all layers.

    The tensors are ordinary ones (no inference tensors, no gradient history), so something may
    be trained on them. They lie on the encoder's device.

    Attributes:
        layers: L + 1 tensors [n, D]: layers[l] is what enters layer l, layers[-1] the exit, in
            the order and with the values of transformers' ``hidden_states``. Vision models
            norm their exit after that: layers[-1] is before the final norm.
        start: index of the first token in the whole source.
        token_ids: int64 [n] for text, else None.
        special: bool [n], true for special, class and register tokens.
    """

    layers: tuple[Tensor, ...]
    start: int
    token_ids: Tensor | None
    special: Tensor

    @property
    def states(self) -> Tensor:
        """The exit's states [n, D]."""
        return self.layers[-1]

    def __len__(self) -> int:
        """Number of tokens n."""
        return self.layers[-1].shape[0]


class FrozenEncoder(ABC):
    """A model that is only read: no gradients, no dropout, no state between calls.

    Attributes:
        name: what error messages and reports call it; never a path.
        hidden_size: width D of the states.
        num_layers: L; a window has L + 1 tensors.
    """

    name: str
    hidden_size: int
    num_layers: int

    def stream(self, source: Any, *, window: int | None = None) -> Iterator[Window]:
        """Windows of a source in order, each token in exactly one of them.

        The iterator keeps no window it has given out, and computes the next one only when it
        is asked. A for loop holds the last window until the next is there: ``del`` it at the
        end of the body where two windows are too many.

        Args:
            source: what the encoder reads; see its class.
            window: the most of the source's own units in a window: tokens of text (with the
                special ones), images, clips of a video, rows of features. None: the
                encoder's choice.

        Raises:
            EncoderError: at once for a source of the wrong kind or without content and for an
                impossible window; later, from the iterator, for content that turns out bad
                there (NaN in row 70,000, a frame of another shape).
        """
        self._check_window(window)
        return self._windows(source, window)

    def encode(self, source: Any) -> Window:
        """All windows of a source joined to one. For short inputs: all states live at once.

        Raises:
            EncoderError: as :meth:`stream`.
        """
        return join(self.stream(source))

    def _check_window(self, window: int | None) -> None:
        whole = isinstance(window, int) and not isinstance(window, bool)
        if window is not None and not (whole and window > 0):
            raise EncoderError(f"{self.name}: window is {window!r}; give a whole number from 1 up")

    @abstractmethod
    def _windows(self, source: Any, window: int | None) -> Iterator[Window]:
        """Checks the source now, returns a lazy iterator."""


def join(windows: Iterable[Window]) -> Window:
    """Consecutive windows of one source as a single window.

    Raises:
        EncoderError: there is no window, or one does not start where the last one ended.
    """
    parts = list(windows)
    if not parts:
        raise EncoderError("there is no window to join; the source was empty")
    for before, after in pairwise(parts):
        if after.start != before.start + len(before):
            raise EncoderError(
                f"a window starts at token {after.start}, but the one before it ends at "
                f"{before.start + len(before)}; join windows of one source in order"
            )
    ids = [part.token_ids for part in parts if part.token_ids is not None]
    return Window(
        layers=tuple(torch.cat(states) for states in zip(*(p.layers for p in parts), strict=True)),
        start=parts[0].start,
        token_ids=torch.cat(ids) if ids else None,
        special=torch.cat([part.special for part in parts]),
    )
