"""Trains a prior for a given time; can be stopped at any moment and goes on where it was."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qm_vllm.prior import checkpoint
from qm_vllm.prior.batches import Batch, BatchMaker
from qm_vllm.prior.checkpoint import CheckpointError
from qm_vllm.prior.config import PriorConfig
from qm_vllm.prior.data import DataSet
from qm_vllm.prior.evaluate import heldout
from qm_vllm.prior.loss import l_ar
from qm_vllm.prior.model import QuickMergePriorForCausalLM
from qm_vllm.prior.options import TrainOptions
from qm_vllm.prior.soft import temperature_at
from qm_vllm.processor import computes_bf16

METRICS, HISTORY = "metrics.json", "history.json"
_STATISTICS_BATCHES = 8


class Trainer:
    """One run in one folder.

    Args:
        encoder: a frozen encoder (:mod:`qm_vllm.encoders`).
        data: what to train on and what to hold out.
        config: shape of a new prior; must agree with the checkpoint of a run that goes on.
        options: see there.
        out: the run's folder; a checkpoint in it is taken up.
        report: called after each step with ("step" or "eval", figures).

    Raises:
        CheckpointError: the checkpoint in ``out`` is of another shape, or broken.
    """

    def __init__(
        self,
        encoder: Any,
        data: DataSet,
        config: PriorConfig,
        options: TrainOptions,
        out: Path,
        report: Callable[[str, dict[str, Any]], None] = lambda kind, figures: None,
    ) -> None:
        self.encoder, self.data, self.options, self.out = encoder, data, options, out
        self.report = report
        self.device = torch.device(encoder.device)
        out.mkdir(parents=True, exist_ok=True)
        self.state: dict[str, Any] = {
            "step": 0, "seconds": 0.0, "source_tokens": 0, "history": [],
            "options": options.to_dict(), "encoder": encoder.name,
        }
        self._half = computes_bf16()
        self.layer_logits = torch.zeros(max(1, encoder.num_layers), device=self.device)
        self.layer_logits.requires_grad_(options.learn_layers)
        self.maker = BatchMaker(encoder, config, options.window_tokens, options.target_tokens)
        self._rng = random.Random(options.seed)
        self._noise = torch.Generator(device=self.device).manual_seed(options.seed)
        self._order: list[int] = []
        found = checkpoint.latest(out)
        if found is None:
            torch.manual_seed(options.seed)
            self.model = QuickMergePriorForCausalLM(config).to(self.device)
            self._set_statistics()
            self.optimiser = self._optimiser()
        else:
            self._resume(found, config)

    def run(self) -> dict[str, Any]:
        """Train until the time is over; returns what ``metrics.json`` holds."""
        options, state = self.options, self.state
        tests = self._heldout_batches()
        limit = options.minutes * 60
        last_eval = last_save = state["seconds"]
        if not state["history"]:
            self._evaluate(tests)
        while state["seconds"] < limit:
            start = time.perf_counter()
            figures = self._step(state["seconds"] / limit)
            state["seconds"] += time.perf_counter() - start
            self.report("step", figures)
            if state["seconds"] - last_eval >= options.eval_every and state["seconds"] < limit:
                start = time.perf_counter()
                self._evaluate(tests)
                state["seconds"] += time.perf_counter() - start
                last_eval = state["seconds"]
            if state["seconds"] - last_save >= options.checkpoint_every:
                self._save()
                last_save = state["seconds"]
        metrics = self._evaluate(tests)
        self._save()
        checkpoint.publish(self.out, self.model)
        checkpoint.replace_file(self.out / METRICS, json.dumps(metrics, indent=1) + "\n")
        checkpoint.replace_file(
            self.out / HISTORY, json.dumps(state["history"], indent=1) + "\n"
        )
        return metrics

    def _step(self, progress: float) -> dict[str, Any]:
        options = self.options
        samples = [self.data.train[i] for i in self._draw(options.batch_size)]
        ratios = [self._rng.uniform(*options.ratios) for _ in samples]
        batch = self.maker.noisy(
            samples, ratios, temperature_at(progress, *options.temperatures), self._noise,
            self.layer_logits.softmax(0) if options.learn_layers else None,
        )
        rate = options.learning_rate * learning_rate_share(progress, options.warmup)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=self._half
        ):
            loss = l_ar(
                self.model, batch.states, batch.lengths, batch.targets, batch.given
            )
        if not bool(torch.isfinite(loss.total)):
            raise FloatingPointError(
                f"the loss is {float(loss.total.detach())} at step {self.state['step']}; lower "
                "learning_rate"
            )
        self.optimiser.zero_grad(set_to_none=True)
        loss.total.backward()
        torch.nn.utils.clip_grad_norm_(self._parameters(), 1.0)
        self.optimiser.step()
        self.state["step"] += 1
        self.state["source_tokens"] += batch.source_tokens
        return {
            "step": self.state["step"], "seconds": self.state["seconds"],
            "l_ar": float((loss.forward + loss.backward).detach()),
            "targets": float(loss.targets.detach()),
            "source_tokens": self.state["source_tokens"],
        }

    def _evaluate(self, tests: list[Batch]) -> dict[str, Any]:
        state = self.state
        metrics = {
            **heldout(self.model, tests), "tokens": state["source_tokens"],
            "seconds": state["seconds"], "steps": state["step"],
        }
        if self.options.learn_layers:
            metrics["layer_weights"] = self.layer_logits.softmax(0).tolist()
        state["history"].append(metrics)
        self.report("eval", metrics)
        return metrics

    def _heldout_batches(self) -> list[Batch]:
        """The same sequences for every run on the same data: evenly spread over what there is."""
        options, held = self.options, self.data.heldout
        count = min(options.heldout_sequences, len(held))
        chosen = [held[i * len(held) // count] for i in range(count)]
        size = options.batch_size
        return [
            self.maker.fixed(chosen[i : i + size], options.eval_ratio)
            for i in range(0, count, size)
        ]

    def _draw(self, count: int) -> list[int]:
        """Indices without repetition until all samples were seen."""
        while len(self._order) < count:
            fresh = list(range(len(self.data.train)))
            self._rng.shuffle(fresh)
            self._order = fresh + self._order
        taken, self._order = self._order[-count:], self._order[:-count]
        return taken

    @torch.no_grad()
    def _set_statistics(self) -> None:
        """Mean and deviation of merged states, from the first batches of the training data."""
        rows = []
        for _ in range(_STATISTICS_BATCHES):
            samples = [self.data.train[i] for i in self._draw(self.options.batch_size)]
            batch = self.maker.fixed(samples, self.options.eval_ratio)
            rows += [row[:size] for row, size in zip(batch.states, batch.lengths, strict=True)]
        states = torch.cat(rows).float()
        self.model.state_mean.copy_(states.mean(0))
        deviation = states.std(0, correction=0)
        self.model.state_std.copy_(deviation.clamp_min(1e-3 * float(deviation.max()) or 1.0))

    def _parameters(self) -> list[Tensor]:
        extra = [self.layer_logits] if self.options.learn_layers else []
        return [*self.model.parameters(), *extra]

    def _optimiser(self) -> torch.optim.Optimizer:
        options = self.options
        matrices = [p for p in self.model.parameters() if p.ndim >= 2]
        vectors = [p for p in self._parameters() if p.ndim < 2]
        return torch.optim.AdamW(
            [{"params": matrices, "weight_decay": options.weight_decay},
             {"params": vectors, "weight_decay": 0.0}],
            lr=options.learning_rate, betas=(0.9, 0.95),
        )

    def _save(self) -> None:
        self.state["rng"] = [self._rng.getstate(), self._order]
        extra = {"layer_logits": self.layer_logits.detach(), "noise": self._noise.get_state()}
        checkpoint.save(
            self.out, self.state["step"], self.model, extra, self.optimiser, self.state
        )

    def _resume(self, folder: Path, config: PriorConfig) -> None:
        model, held, state = checkpoint.load(folder)
        for name in (
            "input_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
            "num_tokens", "num_classes", "num_time_bins",
        ):
            there, wanted = getattr(model.config, name), getattr(config, name)
            if there != wanted:
                raise CheckpointError(
                    f"the checkpoint {folder.name} has {name}={there}, this run {wanted}; "
                    "choose another --out, or the settings of the run that began there"
                )
        if state["encoder"] != self.encoder.name:
            raise CheckpointError(
                f"the run in --out reads {state['encoder']}, not {self.encoder.name}; choose "
                "another --out"
            )
        self.model = model.to(self.device).train()
        self.optimiser = self._optimiser()
        self.optimiser.load_state_dict(held["optimizer"])
        with torch.no_grad():
            self.layer_logits.copy_(held["extra"]["layer_logits"])
        self._noise.set_state(held["extra"]["noise"])
        (version, inner, gauss), self._order = state.pop("rng")
        self._rng.setstate((version, tuple(inner), gauss))
        self.state = {**state, "options": self.options.to_dict()}


def learning_rate_share(progress: float, warmup: float) -> float:
    """Linear rise, then half a cosine down to a twentieth."""
    if progress < warmup:
        return max(progress / warmup, 0.02)
    done = min((progress - warmup) / (1 - warmup), 1.0)
    return 0.05 + 0.95 * (1 + math.cos(math.pi * done)) / 2

