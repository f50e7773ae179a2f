"""L_AR of paper 3.4, and what a prior must beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from qm_vllm.prior.model import QuickMergePriorForCausalLM


@dataclass
class PriorLoss:
    """Losses of a batch; all scalars.

    Attributes:
        total: what training minimises: ``forward + backward + targets``.
        forward, backward: L_forward and L_backward as means over predicted positions and
            dimensions, in units of the data's variance (1: no better than the mean state).
        targets: mean cross-entropy of the target ids in nats; 0 without targets.
        positions: predicted positions of one direction, the sum of ``K - 1``.
        target_ids: how many target ids were scored.
    """

    total: Tensor
    forward: Tensor
    backward: Tensor
    targets: Tensor
    positions: int
    target_ids: int


def l_ar(
    model: QuickMergePriorForCausalLM,
    states: Tensor,
    lengths: Tensor,
    targets: Tensor | None = None,
    given: Tensor | None = None,
) -> PriorLoss:
    """L_AR = L_forward + L_backward over merged states of any K, plus the heads' loss.

    The paper sums squared errors; here they are averaged over positions and dimensions, of
    states in units of their deviation, so that K and D do not change the scale.

    Args:
        states: [B, K_max, D], padded on the right.
        lengths: int64 [B], the K of each; 1 <= K <= K_max. A sequence of K = 1 has nothing to
            predict and adds nothing to L_AR.
        targets: int64 [B, M] output ids that follow the states; -100 where a row has fewer.
        given: int64 [B], how many of a row's targets are read but not scored (a query); None: 0.

    Raises:
        ValueError: shapes disagree, or a state within its length is NaN or infinite.
    """
    model.check(states)
    _check_batch(states, lengths, targets)
    inputs = model.standardised(states)
    inside = torch.arange(states.shape[1], device=states.device) < lengths[:, None]
    inputs = inputs.masked_fill(~inside[..., None], 0)
    embedded = model.forward_stack.input_proj(inputs)
    if targets is not None:
        embedded = with_targets(model, embedded, lengths, targets)
    hidden = model.forward_stack(embedded)
    pairs = inside[:, 1:]
    ahead = model.forward_stack.state_head(hidden[:, : inputs.shape[1] - 1])
    forward = _squared_error(ahead, inputs[:, 1:], pairs)
    backward = forward.new_zeros(())
    if model.backward_stack is not None:
        turned = reverse(inputs, lengths)
        stack = model.backward_stack
        behind = stack.state_head(stack(stack.input_proj(turned)))
        backward = _squared_error(behind[:, :-1], turned[:, 1:], pairs)
    score, count = forward.new_zeros(()), 0
    if targets is not None:
        score, count = _cross_entropy(model, hidden, lengths, targets, given)
    return PriorLoss(
        forward + backward + score, forward, backward, score, int(pairs.sum()), count
    )


def baselines(
    model: QuickMergePriorForCausalLM, states: Tensor, lengths: Tensor
) -> dict[str, Tensor]:
    """L_AR of two predictors that learn nothing, in the units of :func:`l_ar`.

    Returns:
        "copy_last": the next state is this one. "mean_state": it is the mean of the training
        data. Both directions summed; the forward one alone if the prior has no twin.
    """
    inputs = model.standardised(states)
    inside = torch.arange(states.shape[1], device=states.device) < lengths[:, None]
    pairs = inside[:, 1:]
    here, there = inputs[:, :-1], inputs[:, 1:]
    copy = _squared_error(here, there, pairs)
    mean = _squared_error(torch.zeros_like(there), there, pairs)
    if model.backward_stack is not None:
        copy = 2 * copy
        mean = mean + _squared_error(torch.zeros_like(here), here, pairs)
    return {"copy_last": copy, "mean_state": mean}


def reverse(states: Tensor, lengths: Tensor) -> Tensor:
    """Each sequence of [B, T, D] turned round within its own length; padding stays on the right."""
    steps = torch.arange(states.shape[1], device=states.device).expand(states.shape[0], -1)
    index = torch.where(steps < lengths[:, None], lengths[:, None] - 1 - steps, steps)
    return states.gather(1, index[..., None].expand_as(states))


def with_targets(
    model: QuickMergePriorForCausalLM, embedded: Tensor, lengths: Tensor, targets: Tensor
) -> Tensor:
    """[B, K_max + M - 1, H]: each row's K embedded states, then all its targets but the last."""
    ids = targets[:, :-1].clamp_min(0)
    room = embedded.new_zeros(ids.shape[0], ids.shape[1], embedded.shape[2])
    places = (lengths[:, None] + torch.arange(ids.shape[1], device=ids.device))[..., None]
    after = model.get_input_embeddings()(ids).to(embedded.dtype)
    return torch.cat((embedded, room), 1).scatter(1, places.expand_as(after), after)


def _cross_entropy(
    model: QuickMergePriorForCausalLM, hidden: Tensor, lengths: Tensor, targets: Tensor,
    given: Tensor | None,
) -> tuple[Tensor, int]:
    steps = torch.arange(targets.shape[1], device=hidden.device)
    places = lengths[:, None] - 1 + steps
    rows = hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[2]))
    wanted = targets >= 0
    if given is not None:
        wanted &= steps >= given[:, None]
    count = int(wanted.sum())
    if not count:
        return hidden.new_zeros(()), 0
    logits = model.lm_head(rows[wanted])
    return functional.cross_entropy(logits, targets[wanted]), count


def _squared_error(guess: Tensor, truth: Tensor, pairs: Tensor) -> Tensor:
    """Mean over the marked positions and all dimensions; 0 where none is marked."""
    rows = (guess - truth).square().mean(-1).masked_fill(~pairs, 0)
    return rows.sum() / pairs.sum().clamp_min(1)


def _check_batch(states: Tensor, lengths: Tensor, targets: Tensor | None) -> None:
    batch, width = states.shape[:2]
    if lengths.shape != (batch,) or int(lengths.min()) < 1 or int(lengths.max()) > width:
        raise ValueError(
            f"lengths must be [{batch}] numbers between 1 and {width}, not {lengths.tolist()}"
        )
    if targets is not None and (targets.ndim != 2 or len(targets) != batch or not targets.numel()):
        raise ValueError(f"targets must be [{batch}, M >= 1], not {list(targets.shape)}")
    inside = torch.arange(width, device=states.device) < lengths[:, None]
    bad = ~torch.isfinite(states).all(-1) & inside
    if bool(bad.any()):
        row, place = bad.nonzero()[0].tolist()
        raise ValueError(
            f"states {list(states.shape)} hold NaN or infinity, first in sequence {row} at "
            f"position {place}"
        )
