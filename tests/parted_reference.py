"""What :mod:`tests.reference` is for whole prompts, for those that are read in parts."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch

from tests.native_reference import CLOSE
from tests.reference import Reference, Run, looked_up, merge


class PartedReference(Reference):
    """Greedy generation from the merged states of parts that were encoded apart."""

    @torch.inference_mode()
    def generate_parted(
        self, ids: list[int], bounds: list[int], *, ratio: float, block_size: int,
        max_tokens: int, E: int, tail: int, epsilon: float = 0.01,
        protect_last: int = 32, special: frozenset[int] = frozenset(), source: bool = False,
        found: list[int],
    ) -> Run:
        """Each part is read over what was kept of those before it, and stands before the prompt's
        last ``tail`` tokens.

        Kept tokens get the positions 0..K-1, or with ``source`` their own, less N - K.

        Args:
            found: what an engine kept. It is followed where it kept others that rank alike, because
                a later part is read over them.
        """
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
        moved = n - total
        keys: dict[int, list[torch.Tensor]] = {i: [] for i in range(E)}
        values: dict[int, list[torch.Tensor]] = {i: [] for i in range(E)}
        states = []
        for number, (start, stop) in enumerate(parts):
            count, before = stop - start, len(kept)
            read = ids[start:stop] + (ids[n - tail :] if stop < n else [])
            first = start - moved if source else before
            cache: dict[int, Any] = {}
            if before:
                places = torch.tensor(kept) - moved if source else torch.arange(before)
                cache = {
                    layer: (self._rotate(torch.cat(keys[layer]), places), torch.cat(values[layer]))
                    for layer in range(E)
                }
            x, windows, plain = self._encode(read, first, cache, E)
            seen = torch.cat(windows)[:, :, before:]
            score = looked_up(seen, len(read), protect_last, 0 if start else 4)[:count]
            budget = least[number] + ends[number] - (ends[number - 1] if number else 0)
            stays = {i - start for i in fixed[number]}
            order = sorted(range(count), key=lambda i: (i not in stays, -score[i].item(), i))
            chosen = sorted(order[:budget])
            theirs = [i - start for i in found if start <= i < stop]
            if set(chosen) ^ set(theirs) <= set(order[budget - CLOSE : budget + CLOSE]):
                chosen = theirs
            states.append(merge(x[:count], chosen, score, epsilon))
            kept += [i + start for i in chosen]
            rows = torch.tensor(chosen)
            for layer in range(E):
                keys[layer].append(plain[layer][rows])
                values[layer].append(cache[layer][1][before + rows])
        k = len(kept)
        places = torch.tensor(kept[:-1]) - moved if source else torch.arange(k - 1)
        new: dict[int, Any] = {
            layer: (self._rotate(torch.cat(keys[layer])[:-1], places),
                    torch.cat(values[layer])[:-1])
            for layer in range(E)
        }
        y = torch.cat(states)[:-1]
        for layer in range(E, self.num_layers):
            y, _, _ = self.layer(layer, y, places, new)
        return Run(kept, self._decode(ids[kept[-1]], k - 1, new, max_tokens))

    def _encode(
        self, read: list[int], first: int, cache: dict[int, Any], E: int
    ) -> tuple[Any, ...]:
        """States, attention of the last queries by layer, keys before rotation by layer."""
        x = self.core.embed_tokens(torch.tensor(read))
        positions, windows, plain = torch.arange(first, first + len(read)), [], []
        for layer in range(E):
            x, weights, keys = self.layer(layer, x, positions, cache)
            plain.append(keys)
            if layer >= E - 2:
                windows.append(weights[:, -64:].double())
        return x, windows, plain
