"""The one interface of all methods: what they get, and what they give back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeVar

import torch
from torch import Tensor

from qm_vllm_eval.reference.decoder import Decoder
from qm_vllm_eval.reference.prefill import Prefill
from qm_vllm_eval.reference.reader import CompressedContext

Result = TypeVar("Result")


class Unfit(Exception):
    """The method cannot serve this sample at this budget; the message says why."""


@dataclass(frozen=True, eq=False)
class Asked:
    """A hint: what is said of the question to come.

    Attributes:
        tokens: H, how many of its last tokens look.
        prefill: of the S tokens that may be looked at, and these behind them.
    """

    text: str
    tokens: int
    prefill: Prefill


@dataclass(frozen=True, eq=False)
class Request:
    """One prompt to compress to k positions.

    Attributes:
        prefill: of the S tokens that the method may look at: the whole prompt where the
            question is visible, else the context alone.
        held: the last tokens of these that are fed again instead of being stored: 1 where the
            prompt ends with them (the model samples from it, as in vLLM), else 0.
        k: positions to keep of the S, the held ones included.
        visible: whether the question is among the S tokens.
        special: positions of special tokens.
        seed: of the sample, for methods that draw lots.
        shared: results of :meth:`once`, common to all ratios of the prompt.
        hint: for the variants that look.
    """

    prefill: Prefill
    held: int
    k: int
    visible: bool = True
    special: tuple[int, ...] = ()
    seed: int = 0
    shared: dict[object, Any] = field(default_factory=dict)
    hint: Asked | None = None

    @property
    def decoder(self) -> Decoder:
        return self.prefill.decoder

    @property
    def tokens(self) -> int:
        """S."""
        return len(self.prefill)

    def once(self, name: object, make: Callable[[], Result]) -> Result:
        """What ``make`` gives, computed once under this name for all ratios of the prompt."""
        if name not in self.shared:
            self.shared[name] = make()
        result: Result = self.shared[name]
        return result


class Budget(Enum):
    """At which ratios a method is run."""

    GRID = "every ratio"
    FULL = "once, with all tokens"
    NONE = "once, with no context"


@dataclass(frozen=True)
class Method:
    """A way to make a prompt smaller.

    Attributes:
        name: in tables and on the command line.
        settings: what it does and with which settings, one sentence for the report.
        compress: the method itself, for methods that run in this process on a prefill.
        peer: the worker that runs it, for packages in an environment of their own.
        budget: at which ratios it runs.
        needs_question: whether it cannot work without the question.
    """

    name: str
    settings: str
    compress: Callable[[Request], CompressedContext] | None = None
    peer: str | None = None
    budget: Budget = Budget.GRID
    needs_question: bool = False


def keep_entries(request: Request, kept: Tensor) -> CompressedContext:
    """KV of all layers at the kept positions, where they stood in the prompt.

    Args:
        kept: increasing positions; those that are held are left out.
    """
    prefill, stored = request.prefill, _stored(request, kept)
    layers = range(request.decoder.num_layers)
    return CompressedContext(
        [prefill.keys_at(layer, stored, stored) for layer in layers],
        [prefill.values_at(layer, stored) for layer in layers],
        next_position=request.tokens - request.held,
        kept=stored.tolist(),
    )


def run_again(request: Request, kept: Tensor, *, compact: bool = True) -> CompressedContext:
    """A new prefill, from layer 0, over the kept tokens alone.

    Args:
        kept: increasing positions; those that are held are left out.
        compact: number them 0..K-1; else they keep the positions they had.
    """
    stored = _stored(request, kept)
    ids = torch.tensor(request.prefill.ids)[stored]
    positions = torch.arange(len(stored)) if compact else stored
    after = len(stored) if compact else request.tokens - request.held
    return prefill_ids(request.decoder, ids, positions, after, stored.tolist())


def prefill_ids(
    decoder: Decoder, ids: Tensor, positions: Tensor, after: int, kept: list[int] | None = None
) -> CompressedContext:
    """KV of token ids [K] at positions [K], computed from layer 0."""
    _, kv, _ = decoder.run(decoder.embed(ids), 0, decoder.num_layers, positions)
    return CompressedContext(
        [decoder.place(keys, positions) for keys, _ in kv], [v for _, v in kv], after, kept
    )


def top(scores: Tensor, k: int, held: int) -> Tensor:
    """The k best positions in order, the last ``held`` among them."""
    scores = scores.clone()
    if held:
        scores[-held:] = float("inf")
    return scores.topk(min(k, len(scores))).indices.sort().values


def _stored(request: Request, kept: Tensor) -> Tensor:
    return kept[kept < request.tokens - request.held]
