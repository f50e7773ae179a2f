"""The dense pass beside the model's own forward: what both put into the cache must be equal.

An adapter says how a family's layers are run; one that is wrong would give wrong tokens quietly. So
when a model is loaded, a few tokens go through all of its layers in both ways.
"""

from __future__ import annotations

from typing import Protocol

import torch

from qm_vllm.engine.dense.runner import DenseRunner, Stream
from qm_vllm.engine.dense.taps import LayerRecord
from qm_vllm_patches.fused_ops import rotary_forward

LIMITS = {torch.float32: 1e-3, torch.float16: 5e-3}
LOOSEST = 2e-2
"""Relative error of keys or values in the second layer by rounding alone, with a margin of three;
it grows as the square root of the layers below. Less exact types than float16 get the second. What
was measured stands in docs/decisions.md."""
CHUNK = 24
"""Rows of a chunk here, so that a chunk begins in the middle and the last one is shorter."""
AHEAD = 7
"""Positions by which keys are moved to see whether the table of angles is what turns them."""


class Own(Protocol):
    """What the model itself puts into the cache: keys and values of each layer."""

    ids: list[int]
    found: dict[str, tuple[torch.Tensor, torch.Tensor]]


@torch.inference_mode()
def difference(runner: DenseRunner, own: Own) -> str | None:
    """Run all layers densely over the same tokens.

    Args:
        own: keys as they are turned and values, [T, KVH, D] float32 on the CPU, by vLLM's name of
            the layer.

    Returns:
        None, or a sentence that says where the two differ and by how much.
    """
    unknown = len(own.found) - len(runner.view.layers)
    if unknown:
        return f"the adapter knows {len(runner.view.layers)} of {len(own.found)} attention layers"
    chunk, runner.chunk = runner.chunk, CHUNK
    try:
        stream = Stream(runner.embed(own.ids))
        for layer, view in enumerate(runner.view.layers):
            keys, values = _rows(runner, layer, stream)
            limit = LIMITS.get(runner.dtype, LOOSEST) * max(1, layer) ** 0.5
            wanted_keys, wanted_values = own.found[view.attn.name]
            # Rounding may send a token to another expert, so there the typical token decides.
            typical = runner.view.in_context
            errors = {
                "keys": _relative(runner.rotate(layer, keys), wanted_keys, typical=typical),
                "values": _relative(
                    values, wanted_values, beside=wanted_values.mean(0), typical=typical
                ),
            }
            for name, error in errors.items():
                if not error <= limit:
                    return (
                        f"the dense pass gives other {name} in layer {layer} than the model's own "
                        f"forward: they differ by {error:.1e} of their size, and rounding by "
                        f"{limit:.0e} at most"
                    )
            if not _moves(runner, layer, keys, limit):
                return f"the rotary embedding of layer {layer} does not turn by its table of angles"
    finally:
        runner.chunk = chunk
    return None


def _rows(
    runner: DenseRunner, layer: int, stream: Stream
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys before rotation and values of a layer, which is run: [T, KVH, D] both."""
    keys: list[torch.Tensor] = []
    values: list[torch.Tensor] = []

    def sink(_: int, some: torch.Tensor, more: torch.Tensor) -> None:
        keys.append(some.clone())
        values.append(more.clone())

    for _ in runner.run_layer(layer, stream, LayerRecord(sink=sink)):
        pass
    return torch.cat(keys), torch.cat(values)


def _moves(runner: DenseRunner, layer: int, keys: torch.Tensor, limit: float) -> bool:
    """Whether rows that are placed elsewhere are turned as the layer turns them there.

    True where the layers have no table, or this one is not turned: nothing is placed there then.
    """
    places = torch.arange(AHEAD, AHEAD + keys.shape[0])
    table, rotary = runner.place(places), runner.view.layers[layer].rotary
    if table is None or rotary is None:
        return True
    forward = rotary_forward(rotary, runner.device)
    wanted, _ = forward(places.to(runner.device), keys.flatten(1).clone(), None)
    moved = runner.rotate(layer, keys, table)
    return _relative(moved, wanted.view(keys.shape).float().cpu()) <= limit


def _relative(
    dense: torch.Tensor, wanted: torch.Tensor, *, beside: torch.Tensor | float = 0.0,
    typical: bool = False,
) -> float:
    """How far rows [T, KVH, D] are from what is wanted, beside the size of these.

    Args:
        beside: what all rows share, as a bias: it would hide what differs.
        typical: of half of the rows, not of all.
    """
    size = torch.maximum((wanted - beside).norm(), wanted.norm() / 10)
    errors = (dense.float().cpu() - wanted).flatten(1).norm(dim=1)
    error = errors.median() * len(errors) ** 0.5 if typical else errors.norm()
    return float(error / size)
