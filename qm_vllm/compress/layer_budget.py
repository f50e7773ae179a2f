"""How many tokens layers keep, where those that look things up keep more than the others.

What a question wants of a prompt goes through few heads, which want nearly all of it, while the
others live on little (KVzip, Kim et al. 2025, gives each head a length of its own). A page of a
paged cache has as many rows for each head of a layer, but layers may differ: the entries are as
many as if all layers kept K.
"""

from __future__ import annotations

from collections.abc import Sequence

LAYER_SHARE = 0.6
"""Of all entries, what layers that look things up get (docs/decisions.md)."""
LEAST, MOST = 6, 2
"""Between one layer of so many and one of so many look things up."""


def looking_layers(scores: Sequence[float]) -> list[bool]:
    """Which layers look things up: about a third, so many that they divide all.

    Pages of the cache are then the same whatever layers they belong to, and none is padded.

    Args:
        scores: of each layer, :func:`~qm_vllm.compress.head_habits.looks_back` of its best KV head.

    Returns:
        Of each layer; none where no number of them fits (a prime number of layers).
    """
    layers = len(scores)
    fitting = [
        one for one in range(1, layers) if layers % one == 0
        and layers <= one * LEAST and one * MOST <= layers
    ]
    if not fitting:
        return [False] * layers
    count = min(fitting, key=lambda one: (abs(3 * one - layers), one))
    best = sorted(range(layers), key=lambda layer: (-scores[layer], layer))[:count]
    return [layer in best for layer in range(layers)]


def layer_sizes(
    k: int, tokens: int, least: int, others: int, share: float, step: int = 1
) -> tuple[int, int]:
    """How many tokens each layer keeps, K in the mean.

    Args:
        k: K. tokens: N, which no layer can exceed.
        least: what every layer keeps at least.
        others: how many layers there are for each one that looks things up, besides it.
        share: of all entries, what the layers that look things up get, as near as it goes; no less
            than without it.
        step: the two differ by a multiple of it, a block of the cache.

    Returns:
        (of each layer that looks things up, of each other one): K + others x d and K - d.
    """
    if others < 1:
        return k, k
    wanted = round((share * (others + 1) - 1) * k / (others * step))
    most = min((tokens - k) // (others * step), (k - least) // step)
    down = max(0, min(wanted, most)) * step
    return k + others * down, k - down
