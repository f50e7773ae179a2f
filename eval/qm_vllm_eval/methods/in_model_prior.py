"""A prior over the served model's own merged states at layer E, with a corrector."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from qm_vllm.prior import PriorConfig, QuickMergePriorForCausalLM


class InModelPrior(QuickMergePriorForCausalLM):
    """The prior of paper 3.4 in two more roles.

    As a *score*: a merged state that the ones before it predict well carries little
    (:meth:`surprise`). As a *corrector*: a residual on the merged states, zero at first, trained
    so that the upper layers make of K states what they made of all N (:meth:`correct`).
    """

    def __init__(self, config: PriorConfig) -> None:
        super().__init__(config)
        self.correction = nn.Linear(config.hidden_size, config.input_size, bias=False)
        nn.init.zeros_(self.correction.weight)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is getattr(self, "correction", None):
            nn.init.zeros_(self.correction.weight)

    def hidden(self, merged: Tensor) -> Tensor:
        """Merged states [K, D] through the forward decoder: [K, H]."""
        embedded = self.embed_states(merged[None].to(self.state_mean.dtype))
        out: Tensor = self.forward_stack(embedded)[0]
        return out

    def correct(self, merged: Tensor) -> Tensor:
        """Merged states [K, D] plus the correction, in their dtype."""
        added = self.correction(self.hidden(merged)) * self.state_std
        return merged + added.to(merged.dtype)

    def surprise(self, merged: Tensor) -> Tensor:
        """Squared error of predicting each merged state from those before it: [K].

        In units of the states' variance, mean over dimensions; infinite for the first, which
        nothing predicts.
        """
        guess = self.forward_stack.state_head(self.hidden(merged)[:-1])
        truth = self.standardised(merged[1:].to(self.state_mean.dtype))
        errors = (guess - truth).square().mean(-1)
        return torch.cat((errors.new_full((1,), float("inf")), errors))


def load(folder: Path) -> InModelPrior:
    """A trained prior, for reading only.

    Raises:
        ValueError: there is none in the folder.
    """
    if not (folder / "model.safetensors").is_file():
        raise ValueError(
            f"there is no trained prior in {folder.name}; scripts/train_in_model_prior.py makes one"
        )
    model: InModelPrior = InModelPrior.from_pretrained(folder).eval().requires_grad_(False)
    return model
