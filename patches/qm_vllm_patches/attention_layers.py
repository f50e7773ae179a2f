"""The attention layers of any served model: what they are, what passes through them, how they turn.

Nothing here knows a model family: vLLM's own attention layers are found by their type.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from qm_vllm_patches.decoder import AttentionShape
from qm_vllm_patches.own_forward import answering, attend, run_model

Seen = Callable[[str, torch.Tensor], None]
"""``seen(layer, queries)``: rows [T, H, D] of a step's batch, after rotation."""


@dataclass(frozen=True, eq=False)
class CachedLayer:
    """One attention layer with a KV cache of its own.

    Attributes:
        module: the layer, as vLLM made it.
        rotary: what may turn its queries and keys, likeliest first: modules beside it, or those
            that a model keeps for all its layers.
        group: of the KV cache, whose block tables it uses.
    """

    attn: AttentionShape
    module: Any
    rotary: tuple[Any, ...]
    group: int

    @property
    def name(self) -> str:
        """What vLLM calls it."""
        return self.attn.name


def cached_layers(model: Any, groups: dict[str, int]) -> list[CachedLayer]:
    """The model's layers with a KV cache of their own, in the order of the model.

    Args:
        groups: KV-cache group of each layer, by vLLM's name of it.
    """
    from vllm.model_executor.layers.attention import Attention

    modules = dict(model.named_modules())
    shared = [one for one in modules.values() if hasattr(one, "inv_freq")]
    layers = []
    for name, module in modules.items():
        if not isinstance(module, Attention) or module.kv_sharing_target_layer_name:
            continue
        if module.layer_name not in groups:
            continue
        beside = getattr(modules[name.rpartition(".")[0]], "rotary_emb", None)
        rotary = shared if beside is None else [beside]
        layers.append(CachedLayer(
            AttentionShape.of(module), module, tuple(rotary), groups[module.layer_name]
        ))
    return layers


def watch(layers: Sequence[CachedLayer], seen: Seen) -> None:
    """Call back with the queries of each step, from now on, compiled or not.

    The attention of a compiled model is looked up when it runs, so what an instance answers with is
    what runs. Steps inside a whole CUDA graph pass by unseen.
    """
    for layer in layers:
        _watch(layer, seen)


def _watch(layer: CachedLayer, seen: Seen) -> None:
    own, name = layer.module.impl.forward, layer.name

    def forward(module: Any, query: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        seen(name, query)
        return own(module, query, *args, **kwargs)

    layer.module.impl.forward = forward


def read_apart(
    model: Any, runner: Any, layers: Sequence[CachedLayer], ids: Sequence[int],
    device: torch.device,
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Queries and keys of some tokens that are read from position 0 on, outside vLLM's batch.

    Arguments and result as of :func:`equal_tokens`; the attention is the model's, by torch.
    """
    caps = {layer.name: layer.attn.soft_cap for layer in layers}

    def answer(module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> Any:
        return attend(module, query, key, value, caps[module.layer_name])

    return _run_apart(
        model, runner, layers, torch.tensor(ids, dtype=torch.int32, device=device),
        torch.arange(len(ids), device=device), answer,
    )


def equal_tokens(
    model: Any, runner: Any, layers: Sequence[CachedLayer], positions: Sequence[int],
    device: torch.device,
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Queries and keys of one token at several positions, with attention that adds nothing.

    Its states are then equal in all layers, so what differs is what positions do.

    Args:
        runner: what vLLM runs the model with.

    Returns:
        (queries [T, H, D], keys [T, KVH, D]) of each layer that ran, by name.
    """
    count = len(positions)
    ids = torch.full((count,), 1, dtype=torch.int32, device=device)
    places = torch.tensor(positions, dtype=torch.int64, device=device)
    return _run_apart(model, runner, layers, ids, places, lambda *_: None)


def _run_apart(
    model: Any, runner: Any, layers: Sequence[CachedLayer], ids: torch.Tensor,
    places: torch.Tensor, answer: Callable[..., torch.Tensor | None],
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Queries and keys of each layer that ran; what attention answers (None: nothing)."""
    found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def record(module: Any, _: Any) -> Any:
        def forward(
            _: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *__: Any,
            output: Any = None, **___: Any,
        ) -> Any:
            found[module.layer_name] = query.detach().clone(), key.detach().clone()
            rows = answer(module, query, key, value)
            return output.zero_() if rows is None else output.copy_(rows.reshape(output.shape))

        return forward

    count = len(ids)
    with answering([layer.module for layer in layers], record):
        run_model(model, runner, ids, places)
    shapes = {layer.name: layer.attn for layer in layers}
    return {
        name: (
            query.view(count, shapes[name].num_heads, -1),
            key.view(count, shapes[name].num_kv_heads, -1),
        )
        for name, (query, key) in found.items()
    }


def angle_tables(rotary: Any, longest: int) -> list[tuple[torch.Tensor, int, bool]]:
    """What a rotary embedding may turn by.

    Args:
        longest: positions that are needed.

    Returns:
        (cosines and sines [positions, R] float32 on the CPU, R, whether halves are paired and not
        neighbours) for each possibility; none where the module has no such table.
    """
    try:
        if hasattr(rotary, "inv_freq") and not hasattr(rotary, "rotary_dim"):
            # Of transformers, in models that vLLM runs through them; how numbers are paired
            # stands in the model's code.
            angles = torch.outer(
                torch.arange(longest).double(), rotary.inv_freq.detach().double().cpu()
            )
            factor = float(getattr(rotary, "attention_scaling", 1.0))
            table = torch.cat((angles.cos(), angles.sin()), -1).mul(factor).float()
            return [(table, table.shape[1], halves) for halves in (True, False)]
        # The model's own copy may be in half precision; this one is made anew.
        table = rotary._compute_cos_sin_cache().detach().float().cpu()
        return [(table, int(rotary.rotary_dim), bool(rotary.is_neox_style))]
    except (AttributeError, TypeError):
        return []


class StepRows:
    """Which rows of a step's batch belong to which request."""

    def __init__(self, runner: Any) -> None:
        self.runner = runner
        self.order: Callable[[], Sequence[str]] = lambda: runner.input_batch.req_ids
        if not hasattr(runner, "input_batch"):  # Model Runner V2 keeps it to itself
            self._listen()

    def _listen(self) -> None:
        own = self.runner.prepare_inputs
        last: list[str] = []

        def prepare_inputs(*args: Any, **kwargs: Any) -> Any:
            batch = own(*args, **kwargs)
            last[:] = batch.req_ids
            return batch

        self.runner.prepare_inputs = prepare_inputs
        self.order = lambda: last

    def first(self, counts: dict[str, int]) -> dict[str, int]:
        """The first row of each request.

        Args:
            counts: tokens that this step computes of each.
        """
        rows, start = {}, 0
        for request_id in self.order():
            rows[request_id] = start
            start += counts.get(request_id, 0)
        return rows
