"""Random priors whose weights are large enough to matter."""

from __future__ import annotations

from typing import Any

import torch

from qm_vllm.prior import PriorConfig, QuickMergePriorForCausalLM


def random_prior(
    config: PriorConfig, std: float, *, statistics: bool = True, seed: int = 0
) -> Any:
    """A prior with normal weights; ``statistics``: mean and deviation of the states too."""
    torch.manual_seed(seed)
    model = QuickMergePriorForCausalLM(config).eval()
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim > 1:
                weights.normal_(std=std)
        if statistics:
            model.state_mean.normal_()
            model.state_std.uniform_(0.5, 2.0)
    return model
