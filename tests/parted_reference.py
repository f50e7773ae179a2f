"""What :mod:`tests.reference` is for whole prompts, for those that are read in parts."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch

from tests.reference import Reference, Run, looked_up, merge


class PartedReference(Reference):
    """Greedy generation from the merged states of parts that were encoded apart."""

    @torch.inference_mode()
    def generate_parted(
        self, ids: list[int], bounds: list[int], *, ratio: float, block_size: int,
        max_tokens: int, E: int, head: int, tail: int, epsilon: float = 0.01,
        protect_last: int = 32, special: frozenset[int] = frozenset(),
    ) -> Run:
        """Each part stands between the prompt's first ``head`` and its last ``tail`` tokens; kept
        tokens get the positions 0..K-1."""
        n = len(ids)
        total = (math.ceil(ratio * n - 1e-9) - 1) // block_size * block_size + 1
        parts = list(pairwise(bounds))
        fixed = [
            [i for i in range(start, stop) if i < 4 or i >= n - protect_last or ids[i] in special]
            for start, stop in parts
        ]
        least = [max(1, len(own)) for own in fixed]
        free = [stop - start - own for (start, stop), own in zip(parts, least, strict=True)]
        ends = [math.floor((total - sum(least)) * sum(free[: i + 1]) / sum(free))
                for i in range(len(parts))]
        kept: list[int] = []
        keys: dict[int, list[torch.Tensor]] = {i: [] for i in range(E)}
        values: dict[int, list[torch.Tensor]] = {i: [] for i in range(E)}
        states = []
        for number, (start, stop) in enumerate(parts):
            count, before = stop - start, head if start else 0
            read = ids[:before] + ids[start:stop] + (ids[n - tail :] if stop < n else [])
            x, cache, windows, plain = self._encode(read, E)
            own = slice(before, before + count)
            score = looked_up(torch.cat(windows), len(read), protect_last)[own]
            budget = least[number] + ends[number] - (ends[number - 1] if number else 0)
            stays = {i - start for i in fixed[number]}
            order = sorted(range(count), key=lambda i: (i not in stays, -score[i].item(), i))
            chosen = sorted(order[:budget])
            states.append(merge(x[own], chosen, score, epsilon))
            kept += [i + start for i in chosen]
            rows = torch.tensor(chosen) + before
            for layer in range(E):
                keys[layer].append(plain[layer][rows])
                values[layer].append(cache[layer][1][rows])
        k = len(kept)
        places = torch.arange(k - 1)
        new: dict[int, Any] = {
            layer: (self._rotate(torch.cat(keys[layer])[:-1], places),
                    torch.cat(values[layer])[:-1])
            for layer in range(E)
        }
        y = torch.cat(states)[:-1]
        for layer in range(E, self.num_layers):
            y, _, _ = self.layer(layer, y, places, new)
        return Run(kept, self._decode(ids[kept[-1]], k - 1, new, max_tokens))

    def _encode(self, read: list[int], E: int) -> tuple[Any, ...]:
        x = self.core.embed_tokens(torch.tensor(read))
        positions, cache, windows, plain = torch.arange(len(read)), {}, [], []
        for layer in range(E):
            x, weights, keys = self.layer(layer, x, positions, cache)
            plain.append(keys)
            if layer >= E - 2:
                windows.append(weights[:, -64:].double())
        return x, cache, windows, plain
