"""Reads a question and its answer over compressed contexts, many contexts at once.

All methods of the bench are read by this one class, so that a difference between two of them is
a difference between what they kept.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from qm_vllm.eval.reference.decoder import Decoder, rotate


@dataclass(eq=False)
class CompressedContext:
    """The KV that a method left of a prompt.

    Attributes:
        keys: per layer [KVH, K_l, d], rotated. values: the same shape. K_l may differ.
        next_position: position of the first token that is fed after it.
        kept: source position of each entry, where there is one list for all layers.
        bytes_per_value: of one stored number; None: as the model's dtype.
    """

    keys: list[Tensor]
    values: list[Tensor]
    next_position: int
    kept: list[int] | None = None
    bytes_per_value: float | None = None

    @property
    def entries(self) -> float:
        """KV entries per layer, mean over layers."""
        return sum(keys.shape[1] for keys in self.keys) / len(self.keys)


@dataclass(frozen=True)
class Reading:
    """What the model says over one context.

    Attributes:
        nll: mean negative log-likelihood of the target, nats per token.
        exact: whether greedy decoding starts with the target.
        prediction_ids: the greedy continuation, without the end token. Where ``exact`` it is
            the target itself: greedy decoding would give the same tokens first.
    """

    nll: float
    exact: bool
    prediction_ids: list[int]


class _Memory:
    """KV buffers of a batch, left-padded, with room for the tokens to come."""

    def __init__(self, decoder: Decoder, contexts: Sequence[CompressedContext], room: int) -> None:
        self.decoder, rows = decoder, len(contexts)
        self.widths: list[int] = []
        self.buffers: list[tuple[Tensor, Tensor]] = []
        self.padding: list[Tensor] = []
        self.used = 0
        for layer in range(decoder.num_layers):
            sizes = [context.keys[layer].shape[1] for context in contexts]
            width = max(sizes)
            shape = (rows, decoder.num_kv_heads, width + room, decoder.head_dim)
            pair = tuple(
                torch.zeros(shape, dtype=decoder.dtype, device=decoder.device) for _ in "kv"
            )
            for row, context in enumerate(contexts):
                pair[0][row, :, width - sizes[row] : width] = context.keys[layer]
                pair[1][row, :, width - sizes[row] : width] = context.values[layer]
            self.widths.append(width)
            self.buffers.append((pair[0], pair[1]))
            self.padding.append(torch.tensor([width - size for size in sizes]))

    def select(self, rows: list[int]) -> None:
        """Keep only these rows of the batch."""
        index = torch.tensor(rows)
        self.buffers = [(keys[index], values[index]) for keys, values in self.buffers]
        self.padding = [padding[index] for padding in self.padding]

    def mask(self, layer: int, count: int) -> Tensor:
        """What ``count`` new tokens may see: additive [B, 1, G * count, S]."""
        padding = self.padding[layer]
        width, total = self.widths[layer], self.widths[layer] + self.used + count
        place = torch.arange(total)
        newest = width + self.used + torch.arange(count)
        seen = (place >= padding[:, None])[:, None] & (place <= newest[:, None])[None]
        groups = self.decoder.num_heads // self.decoder.num_kv_heads
        mask = torch.zeros(seen.shape, dtype=self.decoder.dtype).masked_fill(~seen, float("-inf"))
        return mask[:, None].repeat(1, 1, groups, 1).to(self.decoder.device)


class Reader:
    """Feeds tokens after compressed contexts."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder

    @torch.inference_mode()
    def read(
        self,
        contexts: Sequence[CompressedContext],
        feed: Sequence[Sequence[int]],
        target_ids: Sequence[int],
        max_new_tokens: int = 0,
        eos_ids: Collection[int] = (),
    ) -> list[Reading]:
        """Score a target after each context, and continue greedily where it is not repeated.

        Args:
            contexts: B contexts.
            feed: B lists of equal length >= 1: the tokens between context and target.
            target_ids: the tokens whose likelihood is wanted, >= 1.
            max_new_tokens: length of the greedy continuation; 0: none.
            eos_ids: tokens that end it.

        Raises:
            ValueError: lengths disagree or a list is empty.
        """
        lengths = {len(ids) for ids in feed}
        if len(feed) != len(contexts) or lengths != {max(lengths, default=0)} or 0 in lengths:
            raise ValueError("feed must hold one list per context, all of one length >= 1")
        if not target_ids:
            raise ValueError("target_ids must hold at least one token")
        (given,) = lengths
        target = [int(token) for token in target_ids]
        memory = _Memory(self.decoder, contexts, given + max(len(target), max_new_tokens))
        starts = torch.tensor([context.next_position for context in contexts])
        rows = torch.tensor([[*ids, *target[:-1]] for ids in feed])
        logits = self._feed(memory, rows, starts)[:, given - 1 :]
        wanted = torch.tensor(target, device=logits.device).expand(len(contexts), -1)
        losses = -logits.log_softmax(-1).gather(-1, wanted[..., None])[..., 0].mean(-1)
        exact = (logits.argmax(-1) == wanted).all(-1)
        predictions = [[] if max_new_tokens == 0 else list(target) for _ in contexts]
        open_rows = [row for row in range(len(contexts)) if not exact[row]]
        if max_new_tokens and open_rows:
            memory.used = given  # what the target wrote is overwritten
            memory.select(open_rows)
            first = logits[open_rows, 0].argmax(-1).cpu()
            told = self._continue(
                memory, first, starts[open_rows] + given, max_new_tokens, frozenset(eos_ids)
            )
            for row, ids in zip(open_rows, told, strict=True):
                predictions[row] = ids
        return [
            Reading(float(losses[row]), bool(exact[row]), predictions[row])
            for row in range(len(contexts))
        ]

    def _continue(
        self, memory: _Memory, first: Tensor, positions: Tensor, limit: int, eos: frozenset[int]
    ) -> list[list[int]]:
        result: list[list[int]] = [[] for _ in range(len(first))]
        alive, token = list(range(len(first))), first
        while True:
            stays = []
            for place, row in enumerate(alive):
                if int(token[place]) not in eos:
                    result[row].append(int(token[place]))
                    if len(result[row]) < limit:
                        stays.append(place)
            if not stays:
                return result
            if len(stays) < len(alive):
                memory.select(stays)
                alive = [alive[place] for place in stays]
                token, positions = token[stays], positions[stays]
            logits = self._feed(memory, token[:, None], positions)
            token, positions = logits[:, -1].argmax(-1).cpu(), positions + 1

    def _feed(self, memory: _Memory, rows: Tensor, starts: Tensor) -> Tensor:
        """Run new tokens [B, T] at positions starts + 0..T-1; logits [B, T, V]."""
        decoder, count = self.decoder, rows.shape[1]
        positions = starts[:, None] + torch.arange(count)[None]
        cos, sin = decoder.angles(positions.to(decoder.device))
        states = decoder.embed(rows)
        masks: dict[tuple[int, ...], Tensor] = {}
        for layer in range(decoder.num_layers):
            query, key, value = decoder.project(layer, states)
            query, key = rotate(query, cos, sin), rotate(key, cos, sin)
            keys, values = memory.buffers[layer]
            start = memory.widths[layer] + memory.used
            keys[:, :, start : start + count] = key
            values[:, :, start : start + count] = value
            name = (memory.widths[layer], *memory.padding[layer].tolist())
            if name not in masks:
                masks[name] = memory.mask(layer, count)
            # Heads that share KV stand behind one another as more rows of the same KV head.
            grouped = query.reshape(len(rows), decoder.num_kv_heads, -1, decoder.head_dim)
            attended = scaled_dot_product_attention(
                grouped,
                keys[:, :, : start + count],
                values[:, :, : start + count],
                attn_mask=masks[name],
            )
            attended = attended.reshape(query.shape)
            states = decoder.finish_layer(layer, states, attended)
        memory.used += count
        return decoder.logits(states)
