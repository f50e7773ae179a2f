"""Trains an :class:`InModelPrior` with the decoder frozen: its KV on the full prompt is the aim."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from qm_vllm.prior import PriorConfig
from qm_vllm.prior.trainer import learning_rate_share
from qm_vllm_eval.methods import Request
from qm_vllm_eval.methods.in_model_prior import InModelPrior
from qm_vllm_eval.methods.quickmerge import merged_by, options
from qm_vllm_eval.reference.decoder import Decoder
from qm_vllm_eval.reference.prefill import Prefill

SCORE_WEIGHT = 0.1
"""Weight of the prediction of the next state beside the corrector's loss."""


class InModelTrainer:
    """One run: text windows, a ratio drawn for each, the loss of both roles.

    Args:
        decoder: the frozen model.
        texts: token ids of the training text, document by document.
        length: N, tokens of a window.
        ratios: K / N is drawn evenly from this range.
    """

    def __init__(
        self, decoder: Decoder, texts: Sequence[Sequence[int]], *, length: int = 512,
        ratios: tuple[float, float] = (0.2, 0.5), hidden_size: int = 384, layers: int = 3,
        learning_rate: float = 1e-3, seed: int = 0,
    ) -> None:
        self.decoder, self.length, self.ratios = decoder, length, ratios
        self.texts = [ids for ids in texts if len(ids) > length]
        if not self.texts:
            raise ValueError(f"no training text has more than {length} tokens")
        self.rate = learning_rate
        self._rng = random.Random(seed)
        for weights in decoder.model.parameters():
            weights.requires_grad_(False)
        torch.manual_seed(seed)
        width = int(decoder.config.hidden_size)
        self.prior = InModelPrior(
            PriorConfig(
                input_size=width, hidden_size=hidden_size, num_hidden_layers=layers,
                num_attention_heads=6, num_key_value_heads=6,
                intermediate_size=hidden_size * 8 // 3,
                backward_twin=False, encoder="layer E of the served model",
            )
        )
        self._set_statistics()

    def run(
        self, seconds: float, report: Callable[[dict[str, Any]], None] = lambda figures: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> InModelPrior:
        """Train for so long by the clock; returns the prior."""
        optimiser = torch.optim.AdamW(
            self.prior.parameters(), lr=self.rate, betas=(0.9, 0.95), weight_decay=0.01
        )
        start, step = clock(), 0
        while (spent := clock() - start) < seconds:
            for group in optimiser.param_groups:
                group["lr"] = self.rate * learning_rate_share(spent / seconds, 0.05)
            figures = self.losses(*self._draw())
            loss = figures["corrected"] + SCORE_WEIGHT * figures["predict"]
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.prior.parameters(), 1.0)
            optimiser.step()
            step += 1
            values = {name: float(value.detach()) for name, value in figures.items()}
            report({"step": step, "seconds": spent, **values})
        return self.prior.eval()

    def losses(self, ids: Sequence[int], ratio: float) -> dict[str, Tensor]:
        """Of one window: relative squared error of the upper layers' keys and values at the kept
        positions, with the corrector ("corrected") and without ("merged"), and of the next state
        ("predict").
        """
        with torch.no_grad():
            prefill = Prefill.run(self.decoder, ids)
            request = Request(prefill, held=1, k=max(8, round(ratio * len(ids))))
            chosen = merged_by(options("quickmerge", request.k, visible=True), request)
            plain = self._upper_error(prefill, chosen.states, chosen.kept, chosen.depth)
        merged = chosen.states.clone()
        corrected = self._upper_error(
            prefill, self.prior.correct(merged), chosen.kept, chosen.depth
        )
        return {
            "corrected": corrected, "merged": plain,
            "predict": self.prior.surprise(merged)[1:].mean(),
        }

    def _upper_error(
        self, prefill: Prefill, states: Tensor, kept: Tensor, depth: int
    ) -> Tensor:
        decoder = self.decoder
        _, upper, _ = decoder.run(states, depth, decoder.num_layers, kept)
        errors = []
        # The first of them makes its KV from the merged state alone: no context is missing there.
        for layer, pair in enumerate(upper, depth):
            whole = (prefill.plain_keys[layer], prefill.values[layer])
            for mine, full in zip(pair, whole, strict=True):
                truth = full[:, kept]
                spread = (truth - truth.mean(1, keepdim=True)).square().mean()
                errors.append((mine - truth).square().mean() / spread)
        return torch.stack(errors).mean()

    def _draw(self) -> tuple[Sequence[int], float]:
        ids = self._rng.choices(self.texts, [len(ids) for ids in self.texts])[0]
        start = self._rng.randrange(len(ids) - self.length)
        return ids[start : start + self.length], self._rng.uniform(*self.ratios)

    @torch.no_grad()
    def _set_statistics(self) -> None:
        rows = []
        for _ in range(8):
            ids, ratio = self._draw()
            prefill = Prefill.run(self.decoder, ids)
            request = Request(prefill, held=1, k=max(8, round(ratio * len(ids))))
            merged = merged_by(options("quickmerge", request.k, visible=True), request)
            rows.append(merged.states[1:].float())
        states = torch.cat(rows)
        self.prior.state_mean.copy_(states.mean(0))
        self.prior.state_std.copy_(states.std(0, correction=0).clamp_min(1e-3))
