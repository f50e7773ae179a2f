"""The decoder of Tables 1 and 2: the AR prior behind a method, trained on one task."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qm_vllm.prior.config import PriorConfig
from qm_vllm.prior.loss import l_ar, with_targets
from qm_vllm.prior.model import QuickMergePriorForCausalLM
from qm_vllm.prior.soft import temperature_at
from qm_vllm.prior.trainer import learning_rate_share
from qm_vllm_eval.baselines.base import Method, Noise, Tokens
from qm_vllm_eval.paper.prepared import Prepared, Split
from qm_vllm_eval.paper.scale import Scale

WARMUP = 0.1
WEIGHT_DECAY = 0.01


@dataclass(frozen=True, eq=False)
class Trained:
    """A method and its decoder after training.

    Attributes:
        losses: target loss in nats of the first and the last tenth of the steps.
        parameters: trained ones, of the method and of what inference needs of the decoder.
    """

    method: Method
    decoder: QuickMergePriorForCausalLM
    losses: tuple[float, float]
    parameters: int


def train(
    method: Method, prepared: Prepared, scale: Scale, seed: int, device: torch.device
) -> Trained:
    """Train method and decoder together for the scale's steps.

    Every method sees the same sequences in the same order; initial weights and noise come from
    the seed.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    torch.manual_seed(seed)
    method = method.to(device).train()
    order = torch.Generator().manual_seed(seed)
    noise = torch.Generator(device=device).manual_seed(seed)
    decoder = QuickMergePriorForCausalLM(_config(method, prepared, scale)).to(device)
    _set_statistics(method, decoder, prepared.train, scale.batch, device)
    optimiser = _optimiser(method, decoder, scale.learning_rate)
    rows = _order(len(prepared.train), scale.batch, order)
    history: list[Tensor] = []
    for step in range(scale.steps):
        progress = step / scale.steps
        for group in optimiser.param_groups:
            group["lr"] = scale.learning_rate * learning_rate_share(progress, WARMUP)
        chosen = next(rows)
        tokens = method(
            prepared.train.source(chosen, device), Noise(noise, temperature_at(progress))
        )
        targets = prepared.train.targets[chosen].to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = l_ar(decoder, tokens.states, tokens.lengths, targets)
        total = loss.total if method.aligned else loss.targets
        optimiser.zero_grad(set_to_none=True)
        (total + tokens.loss).backward()
        torch.nn.utils.clip_grad_norm_(_trainable(method, decoder), 1.0)
        optimiser.step()
        history.append(loss.targets.detach())
    seen = torch.stack(history).float().cpu()
    if not bool(torch.isfinite(seen).all()):
        raise FloatingPointError(f"{method.name}: the loss is not finite; lower the learning rate")
    tenth = max(1, len(seen) // 10)
    used = sum(p.numel() for p in method.parameters() if p.requires_grad) + sum(
        p.numel() for name, p in decoder.named_parameters() if not name.startswith("backward")
    )
    return Trained(
        method.eval(), decoder.eval(), (float(seen[:tenth].mean()), float(seen[-tenth:].mean())),
        used,
    )


@torch.inference_mode()
def target_nats(
    trained: Trained, split: Split, batch: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """What the true targets cost.

    Returns:
        float [S], negative log-likelihood of each row's targets in nats; bool [S, M], whether
        the likeliest id at each place is the true one; int64 [S], K of each row.
    """
    nats, right, kept = [], [], []
    for rows in torch.arange(len(split)).split(batch):
        tokens = trained.method(split.source(rows, device))
        targets = split.targets[rows].to(device)
        logits = _logits(trained.decoder, tokens, targets)
        logs = logits.float().log_softmax(-1)
        wanted = targets >= 0
        picked = logs.gather(-1, targets.clamp_min(0)[..., None])[..., 0]
        nats.append(-(picked * wanted).sum(1))
        right.append((logits.argmax(-1) == targets) & wanted)
        kept.append(tokens.lengths)
    return torch.cat(nats).double().cpu(), torch.cat(right).cpu(), torch.cat(kept).cpu()


@torch.inference_mode()
def sampled(
    trained: Trained, split: Split, count: int, batch: int, seed: int, device: torch.device, *,
    greedy: bool = False, end: int | None = None,
) -> Tensor:
    """Ids [S, count] that the decoder makes up after each row's tokens, drawn at temperature 1.

    Args:
        greedy: take the likeliest id instead; the seed is not used.
        end: the id that ends a row; the rest of the row is filled with it.
    """
    made = []
    generator = torch.Generator(device=device).manual_seed(seed)
    for rows in torch.arange(len(split)).split(batch):
        tokens = trained.method(split.source(rows, device))
        writer = _Writer(trained.decoder, tokens)
        ids = torch.zeros(len(rows), 0, dtype=torch.long, device=device)
        ended = torch.zeros(len(rows), 1, dtype=torch.bool, device=device)
        for _ in range(count):
            logits = writer.logits(ids[:, -1:])
            drawn = (logits.argmax(-1, keepdim=True) if greedy
                     else torch.multinomial(logits.softmax(-1), 1, generator=generator))
            if end is not None:
                drawn = drawn.masked_fill(ended, end)
                ended |= drawn == end
            ids = torch.cat((ids, drawn), 1)
            if bool(ended.all()):
                break
        made.append(torch.nn.functional.pad(ids, (0, count - ids.shape[1]), value=end or 0).cpu())
    return torch.cat(made)


class _Writer:
    """Says id after id behind a batch's tokens, each position computed once."""

    def __init__(self, decoder: QuickMergePriorForCausalLM, tokens: Tokens) -> None:
        from transformers import DynamicCache

        self.decoder, self.tokens, self.cache = decoder, tokens, DynamicCache()
        steps = torch.arange(tokens.states.shape[1], device=tokens.states.device)
        self.inside = (steps < tokens.lengths[:, None]).long()
        self.said = 0

    def logits(self, last: Tensor) -> Tensor:
        """[B, V] for the next id; ``last`` is what was said before it, [B, 1], at first [B, 0]."""
        stack, lengths = self.decoder.forward_stack, self.tokens.lengths
        if last.shape[1]:
            embedded = self.decoder.get_input_embeddings()(last)
            places = (lengths + self.said)[:, None]
            self.said += 1
            self.inside = torch.nn.functional.pad(self.inside, (0, 1), value=1)
        else:
            inputs = self.decoder.standardised(self.tokens.states)
            embedded = stack.input_proj(inputs.masked_fill(self.inside[..., None] == 0, 0))
            places = torch.arange(embedded.shape[1], device=embedded.device)
            places = places.expand(len(lengths), -1)
        hidden = stack.model(
            inputs_embeds=embedded, attention_mask=self.inside, position_ids=places,
            past_key_values=self.cache, use_cache=True,
        ).last_hidden_state
        if not last.shape[1]:
            at = (lengths - 1)[:, None, None].expand(-1, 1, hidden.shape[2])
            hidden = hidden.gather(1, at)
        found: Tensor = self.decoder.lm_head(hidden[:, -1]).float()
        return found


def _logits(decoder: QuickMergePriorForCausalLM, tokens: Tokens, targets: Tensor) -> Tensor:
    """[B, M, V]: row i predicts target i from the tokens and the targets before it."""
    inside = torch.arange(tokens.states.shape[1], device=targets.device) < tokens.lengths[:, None]
    inputs = decoder.standardised(tokens.states).masked_fill(~inside[..., None], 0)
    embedded = decoder.forward_stack.input_proj(inputs)
    hidden = decoder.forward_stack(with_targets(decoder, embedded, tokens.lengths, targets))
    places = tokens.lengths[:, None] - 1 + torch.arange(targets.shape[1], device=targets.device)
    rows = hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[2]))
    logits: Tensor = decoder.lm_head(rows)
    return logits


def _config(method: Method, prepared: Prepared, scale: Scale) -> PriorConfig:
    return PriorConfig(
        input_size=method.width, num_tokens=prepared.vocabulary,
        hidden_size=scale.width, intermediate_size=64 * math.ceil(scale.width * 2.75 / 64),
        num_hidden_layers=scale.layers, num_attention_heads=scale.heads,
        num_key_value_heads=scale.heads, backward_twin=method.aligned,
    )


@torch.no_grad()
def _set_statistics(
    method: Method, decoder: QuickMergePriorForCausalLM, split: Split, batch: int,
    device: torch.device,
) -> None:
    """Mean and deviation of the tokens as the untrained method makes them."""
    rows = torch.linspace(0, len(split) - 1, min(len(split), 8 * batch)).long()
    held = []
    method.eval()
    for part in rows.split(batch):
        tokens = method(split.source(part, device))
        inside = torch.arange(tokens.states.shape[1], device=device) < tokens.lengths[:, None]
        held.append(tokens.states[inside])
    method.train()
    states = torch.cat(held).float()
    decoder.state_mean.copy_(states.mean(0))
    deviation = states.std(0, correction=0)
    floor = 1e-3 * float(deviation.max()) or 1.0
    decoder.state_std.copy_(deviation.clamp_min(floor))


def _order(count: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Batches of indices; each epoch in a new order."""
    held = torch.empty(0, dtype=torch.long)
    while True:
        while len(held) < batch:
            held = torch.cat((held, torch.randperm(count, generator=generator)))
        yield held[:batch]
        held = held[batch:]


def _trainable(*modules: torch.nn.Module) -> list[Any]:
    return [p for module in modules for p in module.parameters() if p.requires_grad]


def _optimiser(
    method: Method, decoder: QuickMergePriorForCausalLM, rate: float
) -> torch.optim.Optimizer:
    parameters = _trainable(method, decoder)
    return torch.optim.AdamW(
        [{"params": [p for p in parameters if p.ndim >= 2], "weight_decay": WEIGHT_DECAY},
         {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0}],
        lr=rate, betas=(0.9, 0.95),
    )
