"""What the encoder saw of one prompt, from which every saliency is computed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from qm_vllm.compress.entropy import attention_entropy
from qm_vllm.compress.normalize import absolute
from qm_vllm.compress.query_attention import QueryAttention

KINDS = frozenset({"entropy", "incoming", "norm", "attention", "leverage"})
"""Kinds of evidence that a saliency may ask for."""
ROWS = 1024
"""Rows of the states that are widened at once for their norms."""


@dataclass
class Evidence:
    """Per-token observations of one prompt of N tokens.

    Attributes:
        num_tokens: N.
        entropies: per score layer, [N] float32: H of eq. 1-2, in nats.
        incoming: per score layer, [N] float32: entropy of the incoming attention, in nats.
        norms: [N] float32: L2 norms of the states at the encoder's exit.
        attention: per window layer from low to high, what the last positions look at.
        leverage: [N] float32: how much keys stand out in heads that look things up
            (:func:`~qm_vllm.compress.leverage.standing_out`).
    """

    num_tokens: int
    entropies: list[Tensor] = field(default_factory=list)
    incoming: list[Tensor] = field(default_factory=list)
    norms: Tensor | None = None
    attention: list[QueryAttention] = field(default_factory=list)
    leverage: Tensor | None = None

    @classmethod
    def from_states(
        cls,
        states: Tensor,
        layer_states: Sequence[Tensor],
        *,
        logit_scale: float,
        needs: Collection[str],
        attention: Sequence[Tensor] = (),
        leverage: Tensor | None = None,
    ) -> Evidence:
        """Gather evidence from plain tensors.

        Args:
            states: [N, D] at the encoder's exit.
            layer_states: per score layer, [N, D_l].
            logit_scale: scale of the cosine logits of eq. 1.
            needs: what to compute, a subset of :data:`KINDS`.
            attention: per window layer, [H, W, N]: the causal softmax attention of each head
                from the last W positions, which states alone cannot give.
            leverage: [N], which needs the keys of all layers.

        Raises:
            ValueError: needs holds an unknown kind, or shapes disagree.
        """
        unknown = set(needs) - KINDS
        if unknown:
            raise ValueError(f"unknown evidence {sorted(unknown)}; allowed: {sorted(KINDS)}")
        count = states.shape[0]
        for layer in layer_states:
            if layer.ndim != 2 or layer.shape[0] != count:
                raise ValueError(
                    f"layer_states must each be [{count}, D], not {list(layer.shape)}"
                )
        for weights in attention:
            if weights.ndim != 3 or weights.shape[2] != count or 0 in weights.shape:
                raise ValueError(
                    f"attention must each be [H, W, {count}], not {list(weights.shape)}"
                )
        if leverage is not None and leverage.shape != (count,):
            raise ValueError(f"leverage must be [{count}], not {list(leverage.shape)}")
        seen = [QueryAttention.of(weights) for weights in attention]
        result = cls(count, attention=seen, leverage=leverage)
        for layer in layer_states:
            result.observe_layer(layer, logit_scale, needs)
        if "norm" in needs:
            result.norms = row_norms(states)
        return result

    def observe_layer(
        self, states: Tensor, logit_scale: float, needs: Collection[str]
    ) -> None:
        """Append the entropies of one score layer, as far as they are needed.

        Args:
            states: [N, D], the states that enter the layer.
            logit_scale: scale of the cosine logits of eq. 1.
            needs: kinds of evidence; "entropy" and "incoming" concern this method.
        """
        if "incoming" in needs:
            outgoing, incoming = attention_entropy(states, logit_scale, incoming=True)
            self.entropies.append(outgoing)
            self.incoming.append(incoming)
        elif "entropy" in needs:
            self.entropies.append(attention_entropy(states, logit_scale))

    def require(self, kind: str, saliency: str) -> None:
        """Raise ValueError, saying how to supply it, where a kind of evidence is missing."""
        present = {
            "entropy": bool(self.entropies),
            "incoming": bool(self.incoming),
            "norm": self.norms is not None,
            "attention": bool(self.attention),
            "leverage": self.leverage is not None,
        }[kind]
        if not present:
            raise ValueError(f"saliency {saliency!r} needs {kind} evidence: {_HOW[kind]}")


_HOW = {
    "entropy": "fill Evidence.entropies, or pass layer_states",
    "incoming": "fill Evidence.incoming (attention_entropy(..., incoming=True)), "
    "or pass layer_states",
    "norm": "fill Evidence.norms with the L2 norms of the states",
    "attention": "pass attention, the weights [H, W, N] of the last W positions, one "
    "tensor a window layer; or choose a query-blind saliency such as 'entropy'",
    "leverage": "pass leverage [N], the sum of standing_out() over layers, which the engine knows "
    "of a prompt that vLLM prefills (delivery='native')",
}


def row_norms(states: Tensor) -> Tensor:
    """L2 norm of each row of [N, D], as [N] float32.

    A CPU widens half-precision rows before it sums them: :data:`ROWS` at a time.
    """
    work = torch.promote_types(states.dtype, torch.float32)
    copies = states.device.type == "cpu" and states.dtype != work
    parts = torch.split(states, ROWS) if copies else (states,)
    return torch.cat([torch.linalg.vector_norm(part, dim=1, dtype=work) for part in parts]).float()


def absolute_saliency(evidence: Evidence) -> Tensor:
    """Mean over layers of ``1 - H / log N``: the saliency that alpha is compared with.

    Returns:
        [N] float32 in [0, 1]; high where attention is sharp. 1 for N = 1.

    Raises:
        ValueError: the evidence holds no entropies.
    """
    evidence.require("entropy", "absolute")
    layers = [1 - absolute(layer, evidence.num_tokens) for layer in evidence.entropies]
    return torch.stack(layers).mean(0)
