"""The same algorithm written a second time, on transformers modules only, without qm_vllm.

Slow, in one piece, saliency in float64. What the engine does is compared with this.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoModelForCausalLM


@dataclass
class Run:
    kept: list[int]
    tokens: list[int]
    states: dict[int, torch.Tensor] = field(default_factory=dict)


class Reference:
    """Greedy generation from K merged states of a Llama-like transformers model."""

    def __init__(self, folder: str, dtype: torch.dtype = torch.float32) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation="eager"
        ).eval()
        self.core = self.model.model
        self.num_layers = len(self.core.layers)

    # --- a decoder layer, by hand ------------------------------------------------------------
    def _project(self, layer: int, normed: torch.Tensor) -> tuple[torch.Tensor, ...]:
        attn = self.core.layers[layer].self_attn
        parts = []
        for name in ("q", "k", "v"):
            x = getattr(attn, f"{name}_proj")(normed).view(normed.shape[0], -1, attn.head_dim)
            if name != "v" and hasattr(attn, f"{name}_norm"):
                x = getattr(attn, f"{name}_norm")(x)
            parts.append(x)
        return tuple(parts)

    def _rotate(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        cos, sin = self.core.rotary_emb(x[None], positions[None])
        cos, sin = cos[0][:, None].to(x.dtype), sin[0][:, None].to(x.dtype)
        half = x.shape[-1] // 2
        turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
        return x * cos + turned * sin

    def layer(
        self, index: int, x: torch.Tensor, positions: torch.Tensor, cache: dict[int, Any]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """One layer on rows [n, D] at ``positions``; appends to cache[index]. Returns states,
        attention weights [H, n, m] and the keys before rotation."""
        block = self.core.layers[index]
        query, plain, value = self._project(index, block.input_layernorm(x))
        query, key = self._rotate(query, positions), self._rotate(plain, positions)
        if index in cache:
            key = torch.cat((cache[index][0], key))
            value = torch.cat((cache[index][1], value))
        cache[index] = (key, value)
        groups = query.shape[1] // key.shape[1]
        keys, values = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        logits = torch.einsum("nhd,mhd->hnm", query, keys) / math.sqrt(query.shape[-1])
        n, m = logits.shape[1:]
        causal = torch.ones(n, m, dtype=torch.bool).tril(m - n)
        weights = logits.float().masked_fill(~causal, -torch.inf).softmax(-1)
        out = torch.einsum("hnm,mhd->nhd", weights.to(x.dtype), values).flatten(1)
        x = x + block.self_attn.o_proj(out)
        return x + block.mlp(block.post_attention_layernorm(x)), weights, plain

    # --- the algorithm -------------------------------------------------------------------------
    @torch.inference_mode()
    def generate(
        self, ids: list[int], *, ratio: float, block_size: int, max_tokens: int, E: int,
        score_layers: tuple[int, int], query_visible: bool = True, special: frozenset[int],
        epsilon: float = 0.01, protect_last: int = 32, hint: tuple[int, ...] = (),
    ) -> Run:
        """``hint``: ids behind the prompt whose attention counts, and whose own positions do not;
        alone if the query is not visible."""
        n = len(ids)
        last = 64 if query_visible else len(hint)
        x = self.core.embed_tokens(torch.tensor([*ids, *hint]))
        positions, cache, plain_keys = torch.arange(n + len(hint)), {}, []
        entropies, windows, states = [], [], {}
        for index in range(E):
            states[index] = x
            if score_layers[0] <= index < score_layers[1]:
                entropies.append(entropy64(x[:n]))
            x, weights, plain = self.layer(index, x, positions, cache)
            plain_keys.append(plain)
            if index >= E - 2:
                windows.append(weights[:, -last:, :n].double())
        x = x[:n]
        states[E] = x
        k = math.ceil(ratio * n - 1e-9)
        protected = [i for i in range(n) if i < 4 or i >= n - protect_last or ids[i] in special]
        if k < n:
            k = max(k, len(protected))
            k = (k - 1) // block_size * block_size + 1
        sharp = 1 - torch.stack([minmax(h) for h in entropies])
        sharp = sharp.mean(0)
        score = sharp
        if last:
            score = looked_up(torch.cat(windows), n, protect_last)
        order = sorted(range(n), key=lambda i: (i not in set(protected), -score[i].item(), i))
        kept = sorted(order[:k])
        merged = merge(x, kept, score, epsilon)
        # The KV of K - 1 positions: anchors' own below E, the merged states' above.
        index = torch.tensor(kept[:-1])
        places = index - (n - k)  # as far from the prompt's end as they were
        new: dict[int, Any] = {
            i: (self._rotate(plain_keys[i][index], places), cache[i][1][index]) for i in range(E)
        }
        y = merged[:-1]
        for i in range(E, self.num_layers):
            y, _, _ = self.layer(i, y, places, new)
        return Run(kept, self._decode(ids[kept[-1]], k - 1, new, max_tokens), states)

    def _decode(self, token: int, position: int, cache: dict[int, Any], steps: int) -> list[int]:
        tokens: list[int] = []
        for _ in range(steps):
            x = self.core.embed_tokens(torch.tensor([token]))
            for i in range(self.num_layers):
                x, _, _ = self.layer(i, x, torch.tensor([position]), cache)
            token = int(self.model.lm_head(self.core.norm(x))[0].argmax())
            tokens.append(token)
            position += 1
        return tokens


def entropy64(x: torch.Tensor, scale: float = 24.0) -> torch.Tensor:
    """Eq. 1-2 in float64 on unit rows."""
    x = x.double()
    x = x / x.norm(dim=-1, keepdim=True)
    log_a = (scale * x @ x.T).log_softmax(-1)
    return -(log_a.exp() * log_a).sum(-1)


def minmax(x: torch.Tensor) -> torch.Tensor:
    return (x - x.min()) / (x.max() - x.min())


def ranks(x: torch.Tensor) -> torch.Tensor:
    """Average ranks in [0, 1]."""
    below = (x[:, None] > x[None]).sum(1).double()
    ties = (x[:, None] == x[None]).sum(1).double()
    return (below + (ties - 1) / 2) / (len(x) - 1)


def looked_up(
    weights: torch.Tensor, n: int, protect_last: int, protect_first: int = 4
) -> torch.Tensor:
    """Three views of the attention [H, 64, N] of the last positions, ranks by shares."""
    recent = weights[:, -8:].mean(1)
    age = torch.arange(weights.shape[1] - 1, -1, -1, dtype=torch.float64)
    aged = weights * torch.exp(-age / 24)[None, :, None]
    views = [recent.max(0).values, aged.flatten(0, 1).max(0).values, recent.norm(dim=0)]
    places = []
    for view, ahead, share in zip(views, (64, 8, 2), (0.2, 0.5, 0.3), strict=True):
        view[:protect_first] = 0
        view[n - protect_last :] = 0
        distance = torch.arange(n)[:, None] - torch.arange(n)[None]  # of i from j
        fall = torch.where(distance >= 0, distance / ahead, -distance / 2).double()
        spread = (view.clamp_min(1e-9).log()[None] - fall).max(1).values
        places.append((1 - ranks(spread)) * (n - 1) / share)
    best = torch.stack(places).min(0).values
    return ranks(-best.round(decimals=3))


def attention_error(weights: torch.Tensor, values: torch.Tensor, kept: list[int]) -> float:
    """What the rows of weights [H, W, N] would miss of values [KVH, N, d] with only ``kept``: the
    largest relative error of a head, one query after another in float64."""
    heads, window, _ = weights.shape
    shares = []
    for head in range(heads):
        value = values[head // (heads // values.shape[0])].double()
        lost = energy = 0.0
        for row in range(window):
            p = weights[head, row].double()
            full = p @ value
            part = p[kept] @ value[kept] / max(float(p[kept].sum()), 1e-20)
            lost += float((full - part).square().sum())
            energy += float(full.square().sum())
        shares.append(math.sqrt(lost / energy))
    return max(shares)


def merge(
    x: torch.Tensor, kept: list[int], score: torch.Tensor, epsilon: float
) -> torch.Tensor:
    """Contiguous groups, epsilon-weighted, a group's dropped mass at most a tenth of its own."""
    groups: dict[int, list[int]] = {a: [] for a in kept}
    taken = set(kept)
    for i in range(x.shape[0]):
        if i not in taken:
            groups[min(kept, key=lambda a: (abs(a - i), a))].append(i)
    rows = []
    for anchor, dropped in groups.items():
        mass = max(float(score[anchor]), 1e-3)
        total = min(epsilon * len(dropped), 0.1 * mass)
        row = x[anchor].double() * mass
        for i in dropped:
            row = row + x[i].double() * (total / len(dropped))
        rows.append((row / (mass + total)).to(x.dtype))
    return torch.stack(rows)
