"""How well a prior predicts merged states that it was not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from qm_vllm.prior.batches import Batch
from qm_vllm.prior.loss import baselines, l_ar
from qm_vllm.prior.model import QuickMergePriorForCausalLM


@torch.no_grad()
def heldout(model: QuickMergePriorForCausalLM, batches: Sequence[Batch]) -> dict[str, Any]:
    """L_AR and its trivial rivals on fixed batches.

    All in units of the training data's variance, per predicted position and dimension, both
    directions summed: see :func:`qm_vllm.prior.loss.l_ar`.

    Returns:
        heldout_l_ar, heldout_forward, heldout_backward, copy_last, mean_state,
        heldout_target_nll (nats a target id; absent without targets), heldout_source_tokens,
        heldout_states.
    """
    model.eval()
    sums = dict.fromkeys(("forward", "backward", "copy_last", "mean_state"), 0.0)
    nll, positions, ids = 0.0, 0, 0
    for batch in batches:
        loss = l_ar(model, batch.states, batch.lengths, batch.targets, batch.given)
        rivals = baselines(model, batch.states, batch.lengths)
        for name, value in (
            ("forward", loss.forward), ("backward", loss.backward), *rivals.items()
        ):
            sums[name] += float(value) * loss.positions
        nll += float(loss.targets) * loss.target_ids
        positions += loss.positions
        ids += loss.target_ids
    model.train()
    each = {name: value / max(1, positions) for name, value in sums.items()}
    return {
        "heldout_l_ar": each["forward"] + each["backward"],
        "heldout_forward": each["forward"],
        "heldout_backward": each["backward"],
        "copy_last": each["copy_last"],
        "mean_state": each["mean_state"],
        **({"heldout_target_nll": nll / ids} if ids else {}),
        "heldout_source_tokens": sum(batch.source_tokens for batch in batches),
        "heldout_states": sum(int(batch.lengths.sum()) for batch in batches),
    }
