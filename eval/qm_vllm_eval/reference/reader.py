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

from qm_vllm_eval.reference.decoder import Decoder, rotate

BIN = 1.15
"""Contexts share a bin while the largest is at most this many times the smallest."""


@dataclass(eq=False)
class CompressedContext:
    """The KV that a method left of a prompt.

    Attributes:
        keys: per layer [KVH, K_l, d], rotated. values: the same shape. K_l may differ.
        next_position: position of the first token that is fed after it.
        kept: source position of each entry, where there is one list for all layers.
        bytes_per_value: of one stored number; None: as the model's dtype.
        heads: per layer [KVH], how many entries a head has where they differ: its last ones of
            K_l, what stands before them is not read. None: all K_l.
    """

    keys: list[Tensor]
    values: list[Tensor]
    next_position: int
    kept: list[int] | None = None
    bytes_per_value: float | None = None
    heads: list[Tensor] | None = None

    @property
    def entries(self) -> float:
        """KV entries per layer, mean over layers and heads."""
        if self.heads is not None:
            counts = [int(heads.sum()) for heads in self.heads]
            return sum(counts) / len(counts) / len(self.heads[0])
        return sum(keys.shape[1] for keys in self.keys) / len(self.keys)


@dataclass(frozen=True)
class Reading:
    """What the model says over one context.

    Attributes:
        nll: mean negative log-likelihood of the target, nats per token.
        accuracy: share of the target's tokens that are the first choice after the right ones.
        exact: whether greedy decoding starts with the target.
        prediction_ids: the greedy continuation, without the end token. Where ``exact`` it is
            the target itself: greedy decoding would give the same tokens first.
    """

    nll: float
    accuracy: float
    exact: bool
    prediction_ids: list[int]


class _Bin:
    """KV buffers of contexts of like size, left-padded, with room for the tokens to come."""

    def __init__(
        self, decoder: Decoder, contexts: Sequence[CompressedContext], room: int
    ) -> None:
        self.decoder, self.rows = decoder, len(contexts)
        self.widths: list[int] = []
        self.buffers: list[tuple[Tensor, Tensor]] = []
        self.padding: list[Tensor] = []
        for layer in range(decoder.num_layers):
            sizes = [context.keys[layer].shape[1] for context in contexts]
            width = max(sizes)
            shape = (self.rows, decoder.num_kv_heads, width + room, decoder.head_dim)
            keys = torch.zeros(shape, dtype=decoder.dtype, device=decoder.device)
            values = torch.zeros_like(keys)
            for row, context in enumerate(contexts):
                keys[row, :, width - sizes[row] : width] = context.keys[layer]
                values[row, :, width - sizes[row] : width] = context.values[layer]
            self.widths.append(width)
            self.buffers.append((keys, values))
            if all(context.heads is None for context in contexts):
                read = torch.tensor(sizes)[:, None]
            else:
                read = torch.stack([
                    torch.full((decoder.num_kv_heads,), size) if context.heads is None
                    else context.heads[layer].cpu()
                    for context, size in zip(contexts, sizes, strict=True)
                ])
            self.padding.append(width - read)  # [B, 1], or [B, KVH] where heads differ

    def select(self, rows: list[int]) -> None:
        """Keep only these rows."""
        if len(rows) == self.rows:
            return
        self.rows, index = len(rows), torch.tensor(rows, dtype=torch.long)
        self.padding = [padding[index] for padding in self.padding]
        index = index.to(self.decoder.device)
        self.buffers = [(keys[index], values[index]) for keys, values in self.buffers]

    def masks(self, used: int, count: int) -> list[Tensor]:
        """Per layer, what new tokens may see: additive [B, 1 or KVH, G * count, S]."""
        made: dict[tuple[int, ...], Tensor] = {}
        masks = []
        for width, padding in zip(self.widths, self.padding, strict=True):
            name = (width, *padding.flatten().tolist())
            if name not in made:
                place = torch.arange(width + used + count)
                newest = width + used + torch.arange(count)
                seen = (place >= padding[..., None])[:, :, None] & (place <= newest[:, None])
                mask = torch.zeros(seen.shape, dtype=self.decoder.dtype)
                mask = mask.masked_fill(~seen, float("-inf"))
                groups = self.decoder.num_heads // self.decoder.num_kv_heads
                made[name] = mask.repeat(1, 1, groups, 1).to(self.decoder.device)
            masks.append(made[name])
        return masks

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, used: int, mask: Tensor
    ) -> Tensor:
        """Store new keys and values [B, KVH, T, d] and attend to all: [B, H, T, d]."""
        keys, values = self.buffers[layer]
        start, stop = self.widths[layer] + used, self.widths[layer] + used + key.shape[2]
        keys[:, :, start:stop] = key
        values[:, :, start:stop] = value
        # Heads that share KV stand behind one another as more rows of the same KV head.
        grouped = query.reshape(self.rows, self.decoder.num_kv_heads, -1, self.decoder.head_dim)
        attended = scaled_dot_product_attention(
            grouped, keys[:, :, :stop], values[:, :, :stop], attn_mask=mask
        )
        return attended.reshape(query.shape)


class _Memory:
    """All contexts of a batch, in bins of like size, so that little of the padding is read."""

    def __init__(
        self, decoder: Decoder, contexts: Sequence[CompressedContext], room: int
    ) -> None:
        self.used = 0
        self.bins: list[_Bin] = []
        start = 0
        for stop in range(1, len(contexts) + 1):
            if stop == len(contexts) or contexts[stop].entries > BIN * contexts[start].entries:
                self.bins.append(_Bin(decoder, contexts[start:stop], room))
                start = stop

    def select(self, rows: list[int]) -> None:
        """Keep only these rows of the batch, in ascending order."""
        start, left = 0, []
        for one in self.bins:
            inside = [row - start for row in rows if start <= row < start + one.rows]
            start += one.rows
            one.select(inside)
            if inside:
                left.append(one)
        self.bins = left


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
        order = sorted(range(len(contexts)), key=lambda row: contexts[row].entries)
        target = [int(token) for token in target_ids]
        memory = _Memory(
            self.decoder,
            [contexts[row] for row in order],
            given + max(len(target), max_new_tokens),
        )
        starts = torch.tensor([contexts[row].next_position for row in order])
        rows = torch.tensor([[*feed[row], *target[:-1]] for row in order])
        logits = self._feed(memory, rows, starts, keep=len(target))
        wanted = torch.tensor(target, device=logits.device).expand(len(order), -1)
        losses = -logits.log_softmax(-1).gather(-1, wanted[..., None])[..., 0].mean(-1)
        right = logits.argmax(-1) == wanted
        accuracy, exact = right.float().mean(-1), right.all(-1)
        predictions = [[] if max_new_tokens == 0 else list(target) for _ in order]
        open_rows = [row for row in range(len(order)) if not exact[row]]
        if max_new_tokens and open_rows:
            memory.used = given  # what the target wrote is overwritten
            memory.select(open_rows)
            first = logits[open_rows, 0].argmax(-1).cpu()
            told = self._continue(
                memory, first, starts[open_rows] + given, max_new_tokens, frozenset(eos_ids)
            )
            for row, ids in zip(open_rows, told, strict=True):
                predictions[row] = ids
        readings: dict[int, Reading] = {
            source: Reading(
                float(losses[row]), float(accuracy[row]), bool(exact[row]), predictions[row]
            )
            for row, source in enumerate(order)
        }
        return [readings[row] for row in range(len(contexts))]

    @torch.inference_mode()
    def answer(
        self, context: CompressedContext, feed: Sequence[int], most: int,
        eos_ids: Collection[int] = (),
    ) -> list[int]:
        """The greedy continuation of one context and these tokens, at most ``most`` long.

        The end token is not among the ids.
        """
        memory = _Memory(self.decoder, [context], len(feed) + most)
        starts = torch.tensor([context.next_position])
        first = self._feed(memory, torch.tensor([list(feed)]), starts)[:, -1].argmax(-1).cpu()
        (ids,) = self._continue(memory, first, starts + len(feed), most, frozenset(eos_ids))
        return ids

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

    def _feed(
        self, memory: _Memory, rows: Tensor, starts: Tensor, keep: int = 1
    ) -> Tensor:
        """Run new tokens [B, T] at positions starts + 0..T-1; logits of the last ``keep``."""
        decoder, count = self.decoder, rows.shape[1]
        positions = starts[:, None] + torch.arange(count)[None]
        cos, sin = decoder.angles(positions)
        states = decoder.embed(rows)
        sizes = [one.rows for one in memory.bins]
        masks = [one.masks(memory.used, count) for one in memory.bins]
        for layer in range(decoder.num_layers):
            query, key, value = decoder.project(layer, states)
            parts = zip(
                memory.bins,
                rotate(query, cos, sin).split(sizes),
                rotate(key, cos, sin).split(sizes),
                value.split(sizes),
                masks,
                strict=True,
            )
            attended = [
                one.attend(layer, q, k, v, memory.used, mask[layer])
                for one, q, k, v, mask in parts
            ]
            states = decoder.finish_layer(layer, states, torch.cat(attended))
        memory.used += count
        return decoder.logits(states[:, -keep:])
