"""What the native delivery has to know of a served model's layers, found out when it is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from qm_vllm.compress import (
    HeadHabits,
    kept_places,
    least_look_back,
    looking_layers,
    looks_back,
    run_twice,
)
from qm_vllm.engine.agreement import gather
from qm_vllm.engine.native.rotation import Turn, stands_still, turns_as
from qm_vllm_patches.attention_layers import (
    CachedLayer,
    angle_tables,
    cached_layers,
    equal_tokens,
    read_apart,
)
from qm_vllm_patches.kv_cache import PagedCache
from qm_vllm_patches.own_forward import reading_limits


class CannotDeliver(ValueError):
    """The native delivery does not know how to move this model's keys; the message says why."""


@dataclass(frozen=True, eq=False)
class NativeLayer:
    """One layer whose keys and values are moved.

    Attributes:
        turn: what its keys are turned by; None if they do not depend on their position.
        habits: what its heads do whatever they are asked; None where all keep the same.
    """

    layer: CachedLayer
    turn: Turn | None
    habits: HeadHabits | None = None

    @property
    def window(self) -> int | None:
        """Newest positions that a query sees, its own included; None: all."""
        return self.layer.attn.sliding_window

    def back(self, keys: torch.Tensor, by: int) -> torch.Tensor:
        """Keys as they are so many positions earlier."""
        return keys if self.turn is None else self.turn.back(keys, by)

    def queries_at(self, position: int) -> torch.Tensor:
        """The queries of its habits, [W, H, D], the first of them at this position."""
        assert self.habits is not None
        return self.back(self.habits.queries, self.habits.place - position)


def native_layers(
    model: Any, runner: Any, groups: dict[str, int], device: torch.device, longest: int
) -> list[NativeLayer]:
    """The layers of a model, each looked at.

    The model runs once over equal tokens at some positions, with attention that adds nothing. What
    differs between the rows of a layer is what positions do to queries and keys: nothing, the turn
    of its rotary embedding, or something that is not known here.

    Args:
        runner: what vLLM runs the model with.
        groups: KV-cache group of each layer.
        longest: tokens of the longest request.

    Raises:
        CannotDeliver: a layer does something that is not known here.
    """
    layers = cached_layers(model, groups)
    missing = set(groups) - {layer.name for layer in layers}
    if missing:
        raise CannotDeliver(f"{min(missing)} keeps something else than keys and values")
    for layer in layers:
        for feature, label in (
            ("alibi_slopes", "ALiBi"), ("sinks", "attention sinks"),
        ):
            if getattr(layer.module.impl, feature, None) is not None:
                raise CannotDeliver(f"{layer.name} uses {label}")
    wanted = {0, 1, 37, longest // 3, longest // 2 + 5, longest - 1}
    positions = sorted(one for one in wanted if one < longest)
    seen = equal_tokens(model, runner, layers, positions, device)
    known: dict[int, list[Turn]] = {}

    def turns(layer: CachedLayer) -> list[Turn]:
        for one in layer.rotary:
            if id(one) not in known:
                known[id(one)] = [Turn(*table) for table in angle_tables(one, longest)]
        return [turn for one in layer.rotary for turn in known[id(one)]]

    return [NativeLayer(layer, _turn(layer, seen, positions, turns(layer))) for layer in layers]


def with_habits(
    model: Any, runner: Any, layers: list[NativeLayer], device: torch.device, longest: int
) -> list[NativeLayer]:
    """The layers, those that see all positions with their heads' habits.

    The model runs once over two times the same tokens, on all ranks of a tensor-parallel group at
    the same time.

    Args:
        longest: tokens of the longest request.
    """
    whole = [one.layer for one in layers if one.window is None]
    if not whole:
        return layers
    seen, scores = _run_twice(model, runner, [one.layer for one in layers], whole, device, longest)
    least = least_look_back(gather(lambda: torch.cat(scores)))
    length = next(iter(seen.values()))[0].shape[0] // 2
    places = kept_places(length)
    habits = {
        one.name: HeadHabits(seen[one.name][0][list(places)].clone(), places[0], own / least)
        for one, own in zip(whole, scores, strict=True)
    }
    return [replace(one, habits=habits.get(one.layer.name)) for one in layers]


def look_up_layers(
    model: Any, runner: Any, names: Sequence[str], device: torch.device, longest: int
) -> list[str]:
    """Names of the layers that look things up, a third of all or so, before there is a KV cache.

    All ranks of a tensor-parallel group at the same time.

    Args:
        names: of the layers with a KV cache. longest: as of :func:`with_habits`.

    Raises:
        CannotDeliver: layers cannot be told apart so.
    """
    layers = cached_layers(model, dict.fromkeys(names, 0))
    if {one.name for one in layers} != set(names):
        raise CannotDeliver("layers keep something else than keys and values")
    if any(one.attn.sliding_window is not None for one in layers):
        raise CannotDeliver("layers have sliding windows")
    if len({(one.attn.num_kv_heads, one.attn.head_size) for one in layers}) > 1:
        raise CannotDeliver("layers differ in their heads")
    _, scores = _run_twice(model, runner, layers, layers, device, longest)
    best = gather(lambda: torch.stack(scores).amax(1)[None]).amax(0).tolist()
    found = [one.name for one, chosen in zip(layers, looking_layers(best), strict=True) if chosen]
    if not found:
        raise CannotDeliver(f"{len(layers)} layers cannot be divided into groups of one size")
    return found


def _run_twice(
    model: Any, runner: Any, layers: Sequence[CachedLayer], whole: Sequence[CachedLayer],
    device: torch.device, longest: int,
) -> tuple[dict[str, tuple[torch.Tensor, torch.Tensor]], list[torch.Tensor]]:
    """Queries and keys of a run read twice in all layers, and how much each KV head of those that
    see all positions looks back."""
    vocabulary, most = reading_limits(runner)
    ids = run_twice(vocabulary, min(most, longest))
    seen = read_apart(model, runner, layers, ids, device)
    scores = [  # layers may differ in their number of heads
        looks_back(*seen[one.name], one.attn.scale, one.attn.soft_cap) for one in whole
    ]
    return seen, scores


def _turn(
    layer: CachedLayer, seen: dict[str, tuple[torch.Tensor, torch.Tensor]], positions: list[int],
    turns: list[Turn],
) -> Turn | None:
    if layer.name not in seen:
        raise CannotDeliver(f"{layer.name} did not run in the test of its positions")
    both = seen[layer.name]
    if all(stands_still(rows) for rows in both):
        return None
    for turn in turns:
        if all(turns_as(turn, rows, positions) for rows in both):
            return turn
    names = ", ".join(sorted({type(one).__name__ for one in layer.rotary})) or "no rotary embedding"
    raise CannotDeliver(
        f"{layer.name} depends on positions in a way that is not known here ({names})"
    )


def learn(cache: PagedCache, layers: list[NativeLayer]) -> None:
    """Find out how each layer's blocks are laid out.

    Raises:
        CannotDeliver: one cannot be read back.
    """
    problem = cache.learn([one.layer.module for one in layers])
    if problem:
        raise CannotDeliver(problem)
