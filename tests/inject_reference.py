"""What the in-model delivery must compute, on transformers alone: merged states, natural positions.

The model reads the whole prompt with its own attention; the states that enter the encoder's exit
are merged, and the layers above go on from these. Every row keeps its natural position: distances
decide in RoPE, so this equals rows that are turned to where vLLM counts them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from qm_vllm import QuickMergeConfig
from qm_vllm.compress import Choice, Evidence, QueryAttention, choose, protected_positions
from qm_vllm.layers import WINDOW_QUERIES, encoder_depth, window_layers
from tests.native_reference import Continuation, NativeReference, Rows, with_ties
from tests.reference import merge


class InjectReference(NativeReference):
    """One model in float32."""

    @torch.inference_mode()
    def generate(
        self, ids: list[int], *, block_size: int, max_tokens: int,
        special: tuple[int, ...] = (), **options: Any,
    ) -> Continuation:
        """Greedy continuation of a prompt of which K merged states stay."""
        config, count = QuickMergeConfig(**options), len(ids)
        layers, rows = list(self.model.get_decoder().layers), Rows()
        depth = encoder_depth(config, len(layers))
        with _entering(layers[depth]) as seen:
            self._step(rows, ids, 0)
        windows = range(depth)[-window_layers(config, len(layers)):]
        evidence = Evidence(count, attention=[
            QueryAttention.of(rows.weights[layer][:, -WINDOW_QUERIES:]) for layer in windows
        ])
        protected = protected_positions(
            config, count, special=[i for i, one in enumerate(ids) if one in special]
        )
        choice = choose(evidence, config, protected=protected, block_size=block_size)

        @torch.inference_mode()
        def go_on(kept: torch.Tensor, _: list[int]) -> Continuation:
            with _entering(layers[depth], self._merged(seen[0], kept, choice, config)):
                upper = Rows()
                self._run(upper, [ids[i] for i in kept[:-1]], kept[:-1])
            for layer in range(depth, len(layers)):
                for part, own in ((rows.keys, upper.keys), (rows.values, upper.values)):
                    part[layer] = part[layer].clone()
                    part[layer][:, :, kept[:-1]] = own[layer]
            return self._go_on(rows, ids, kept, {}, max_tokens, None)

        return with_ties(choice, go_on)

    def _merged(
        self, states: torch.Tensor, kept: torch.Tensor, choice: Choice, config: QuickMergeConfig
    ) -> torch.Tensor:
        """[1, K - 1, D]: the last kept token's own state is computed anew."""
        return merge(states[0], kept.tolist(), choice.scores, config.epsilon)[None, :-1]


@contextmanager
def _entering(
    layer: torch.nn.Module, instead: torch.Tensor | None = None
) -> Iterator[list[torch.Tensor]]:
    """The states [1, T, D] that enter a layer; ``instead`` of them, others."""
    seen: list[torch.Tensor] = []

    def look(_: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        states = args[0] if args else named["hidden_states"]
        seen.append(states)
        if instead is None:
            return None
        if args:
            return (instead, *args[1:]), named
        return args, {**named, "hidden_states": instead}

    handle = layer.register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()
