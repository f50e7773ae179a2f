"""What a model's heads do whatever they are asked, learned once from tokens that mean nothing.

A run of tokens spread over the vocabulary is read twice in a row. In its second half a head that
looks things up finds where the run stood before: such heads are few, and what a question wants of a
prompt goes through them (induction heads, Olsson et al. 2022; retrieval heads, Wu et al. 2024). In
its first half nothing can be looked up: the queries there say what a head attends to of any text,
and put behind a prompt they stand for those of an answer that nobody knows yet. That such queries'
places count for more than their content follows DapQ (arXiv 2603.11564), where they are made for
each prompt; that any prompt can be served with the same ones is ours (docs/decisions.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

RUN = 128
"""Tokens of the run, which is read twice."""
QUERIES = 16
"""Of its first reading, those that are kept: every eighth."""
LOOKING_UP = 8
"""One head of so many is taken to look things up."""
STEP = 2654435761
"""Knuth's multiplicative hash: multiples of it are spread over any vocabulary."""


@dataclass(frozen=True, eq=False)
class HeadHabits:
    """Of one layer's heads.

    Attributes:
        queries: [W, H, D], rotated as they stood. place: where the first of them stood.
        looking: [KVH] float32, how much each KV head looks things up: :func:`looks_back` in units
            of :func:`least_look_back`, so that those with 1 or more count among them that do.
    """

    queries: Tensor
    place: int
    looking: Tensor

    @cached_property
    def finders(self) -> Tensor:
        """The KV heads that look things up: int64 [F], on the device, read back once."""
        return (self.looking >= 1).nonzero().flatten()


def run_twice(vocabulary: int, most: int = 2 * RUN) -> list[int]:
    """The token ids to read: a run, and the same again.

    Args:
        vocabulary: size of it; its first and its last id are left out.
        most: tokens that can be read at once.

    Raises:
        ValueError: there is not even room for one token twice.
    """
    length = min(RUN, most // 2)
    if vocabulary < 3 or length < 1:
        raise ValueError(f"no run of {length} tokens can be made of a vocabulary of {vocabulary}")
    run = [1 + i * STEP % (vocabulary - 2) for i in range(length)]
    return [*run, *run]


def kept_places(length: int) -> range:
    """Where the queries that are kept stand in a run of so many tokens."""
    each = max(1, length // QUERIES)
    return range(each - 1, length, each)


def looks_back(queries: Tensor, keys: Tensor, scale: float, soft_cap: float = 0.0) -> Tensor:
    """How much each KV head of a layer looks up what it read before.

    Args:
        queries: [2M, H, D], keys: [2M, KVH, D], of a run read twice; both rotated.
        scale: of the logits. soft_cap: c of ``c tanh(logits / c)``; 0: none.

    Returns:
        [KVH] float32 in [0, 1]: the attention that the second reading of a token pays to its first
        one and to the token behind that, mean over tokens, of the KV head's highest query head.
    """
    length, kv_heads = len(queries) // 2, keys.shape[1]
    again = (queries[length:].float() * scale).reshape(length, kv_heads, -1, queries.shape[-1])
    logits = torch.einsum("mged,ngd->gemn", again, keys.float())
    if soft_cap:
        logits = torch.tanh(logits / soft_cap) * soft_cap
    future = torch.ones(length, 2 * length, dtype=torch.bool, device=keys.device).triu(length + 1)
    paid = logits.masked_fill(future, float("-inf")).softmax(-1)
    token = torch.arange(length, device=keys.device)
    found = paid[..., token, token]
    if length > 1:
        found = found[..., :-1] + paid[..., token[:-1], token[1:]]
    return found.mean(-1).amax(1)


def least_look_back(scores: Tensor) -> Tensor:
    """What a head must look back at least to count among those that look things up.

    Args:
        scores: [M], :func:`looks_back` of all KV heads of all layers.

    Returns:
        A scalar greater than 0 that an eighth of them reach, one at least.
    """
    least = scores.topk(max(1, round(len(scores) / LOOKING_UP))).values[-1]
    return least.clamp(min=torch.finfo(least.dtype).tiny)
