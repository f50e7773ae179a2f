"""The habits of a model's heads (:mod:`qm_vllm.compress.head_habits`), by the reference."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from qm_vllm.compress import (
    kept_places,
    least_look_back,
    looking_layers,
    looks_back,
    run_twice,
    standing_out,
)
from qm_vllm_eval.reference.decoder import Decoder
from qm_vllm_eval.reference.prefill import Prefill

_KNOWN: WeakKeyDictionary[Decoder, Habits] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class Habits:
    """Of all layers.

    Attributes:
        queries: per layer [H, W, d], before rotation. steps: how far each stands behind the first.
        looking: per layer [KVH], how much each KV head looks things up
            (:class:`~qm_vllm.compress.head_habits.HeadHabits`). large: of each layer, whether it
            keeps more than others.
    """

    queries: list[Tensor]
    steps: Tensor
    looking: list[Tensor]
    large: list[bool]

    def queries_at(self, decoder: Decoder, layer: int, position: int) -> Tensor:
        """[W, H, d], rotated, the first of them at this position."""
        return decoder.place(self.queries[layer], self.steps + position).transpose(0, 1)

    def standing_out(self, prefill: Prefill) -> Tensor:
        """What stands out among the keys of heads that look things up: [N] float32 on the CPU."""
        every, total = torch.arange(len(prefill)), torch.zeros(len(prefill))
        for layer, looking in enumerate(self.looking):
            finders = (looking >= 1).nonzero().flatten()
            if len(finders):
                keys = prefill.keys_at(layer, every, every).transpose(0, 1)
                total += standing_out(keys, prefill.values[layer].transpose(0, 1), finders).cpu()
        return total


def habits_of(decoder: Decoder) -> Habits:
    """A model's, learned when they are first asked for."""
    if decoder not in _KNOWN:
        _KNOWN[decoder] = _learn(decoder)
    return _KNOWN[decoder]


@torch.inference_mode()
def _learn(decoder: Decoder) -> Habits:
    # As vLLM counts it: some models have more rows than their tokenizer has tokens.
    ids = run_twice(int(decoder.config.vocab_size))
    prefill = Prefill.run(decoder, ids)
    every, places = torch.arange(len(ids)), torch.tensor(kept_places(len(ids) // 2))
    queries, scores = [], []
    for layer in range(decoder.num_layers):
        plain = decoder.project(layer, prefill.states[layer][None])[0][0]
        scores.append(looks_back(
            decoder.place(plain, every).transpose(0, 1),
            prefill.keys_at(layer, every, every).transpose(0, 1),
            float(decoder.layers[layer].self_attn.scaling),
        ))
        queries.append(plain[:, places])
    least = least_look_back(torch.cat(scores))
    large = looking_layers([float(one.max()) for one in scores])
    return Habits(queries, places - places[0], [one / least for one in scores], large)
