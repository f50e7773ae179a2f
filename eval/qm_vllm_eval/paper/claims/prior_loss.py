"""3.4: what L_AR = L_forward + L_backward can and cannot do."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qm_vllm.prior import PriorConfig, QuickMergePriorForCausalLM
from qm_vllm.prior.loss import l_ar


@dataclass(frozen=True)
class PriorLossFigures:
    """L_AR on given merged states, of a prior of random weights.

    Attributes:
        forward_gradient: norm of the gradient of L_forward on the weights of f->.
        backward_gradient: of L_backward on the same weights; frozen states, two decoders.
        constant_loss: L_AR of a sequence of one state repeated, of a prior that predicts it.
        served_weights: how many tensors of f<- the served model loads.
        backward_helps: L_backward changes f->, the one decoder used at inference.
        only_forward_served: no weight of f<- is loaded.
        retains: a low L_AR implies that the sequence retains its source.
    """

    forward_gradient: float
    backward_gradient: float
    constant_loss: float
    served_weights: int
    backward_helps: bool
    only_forward_served: bool
    retains: bool


def check_prior_loss(states: Tensor, seed: int = 0) -> PriorLossFigures:
    """Measure on merged states [K, D], K >= 2, from a frozen encoder."""
    torch.manual_seed(seed)
    config = PriorConfig(
        input_size=states.shape[1], hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4,
    )
    model = QuickMergePriorForCausalLM(config).float()
    assert model.backward_stack is not None
    heads = [model.forward_stack.state_head, model.backward_stack.state_head]
    lengths = torch.tensor([states.shape[0]])
    # Heads of zeros predict the mean state; a sequence that is the mean state costs nothing.
    model.state_mean.copy_(states.float().mean(0))
    flat = model.state_mean.expand(1, states.shape[0], -1)
    constant = float(l_ar(model, flat, lengths).total.detach())
    for head in heads:
        torch.nn.init.normal_(head.weight, std=0.1)
    loss = l_ar(model, states.float()[None], lengths)
    weights = [w for w in model.forward_stack.parameters() if w.requires_grad]
    ahead, behind = (_gradient(part, weights) for part in (loss.forward, loss.backward))
    served = served_backward_weights(model)
    return PriorLossFigures(
        forward_gradient=ahead,
        backward_gradient=behind,
        constant_loss=constant,
        served_weights=served,
        backward_helps=behind > 0,
        only_forward_served=served == 0,
        retains=constant > 0,
    )


def served_backward_weights(model: QuickMergePriorForCausalLM) -> int:
    """Tensors of f<- that the vLLM model would load, by its own table of names.

    Without vLLM: the weights that :meth:`forward` of the transformers class reads of f<-.
    """
    try:
        from qm_vllm_patches.served_prior import CHECKPOINT
    except ImportError:
        return _read_by_forward(model)
    names = [(name, w) for name, w in model.state_dict().items() if "backward_stack" in name]
    return len(list(CHECKPOINT.apply(names)))


def _read_by_forward(model: QuickMergePriorForCausalLM) -> int:
    assert model.backward_stack is not None
    states = torch.zeros(1, 2, model.config.input_size)
    hidden = model(states).hidden
    found = torch.autograd.grad(
        hidden.sum(), list(model.backward_stack.parameters()), allow_unused=True
    )
    return sum(gradient is not None for gradient in found)


def _gradient(loss: Tensor, weights: list[Tensor]) -> float:
    found = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
    squares = [float(part.double().square().sum()) for part in found if part is not None]
    return sum(squares) ** 0.5
