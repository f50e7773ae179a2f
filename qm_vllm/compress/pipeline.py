"""From states to compressed states: the whole method on plain tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from qm_vllm.compress import fidelity
from qm_vllm.compress.attention_error import AttentionError
from qm_vllm.compress.budget import protected_mask
from qm_vllm.compress.choice import choose, keeps_all
from qm_vllm.compress.entropy import check_states
from qm_vllm.compress.evidence import Evidence, row_norms
from qm_vllm.compress.grouping import group_tokens
from qm_vllm.compress.merge import merge_states
from qm_vllm.compress.saliency import needs
from qm_vllm.config import QuickMergeConfig


@dataclass(frozen=True, eq=False)
class Compressed:
    """One prompt after compression, with its provenance.

    Attributes:
        states: [K, D], one state per kept position, in order.
        kept: int64 [K], source position of each, strictly increasing.
        groups: int64 [N], the row of ``states`` that each source token went into.
        scores: [N] float32 in [0, 1]; 1 everywhere where nothing was scored.
        measures: [3] float64, the three figures below, on the states' device.
    """

    states: Tensor
    kept: Tensor
    groups: Tensor
    scores: Tensor
    measures: Tensor

    @property
    def gamma(self) -> float:
        """Share of the norm mass in the K largest norms (paper 3.5)."""
        return float(self.measures[0])

    @property
    def retained_norm(self) -> float:
        """Share of the norm mass at the kept positions."""
        return float(self.measures[1])

    @property
    def reconstruction_error(self) -> float:
        """Measured ``||X - X_pad|| / ||X||``."""
        return float(self.measures[2])

    @property
    def num_tokens(self) -> int:
        """N, the tokens of the source."""
        return self.groups.shape[0]

    @property
    def num_kept(self) -> int:
        """K, the positions that stay."""
        return self.kept.shape[0]

    @property
    def untouched(self) -> bool:
        """True where every token stayed."""
        return self.num_kept == self.num_tokens


def finish(
    states: Tensor, evidence: Evidence, scores: Tensor, kept: Tensor, config: QuickMergeConfig,
    *, check: bool = True,
) -> Compressed:
    """Group, merge and measure, once the kept positions are known.

    Args:
        states: [N, D] at the encoder's exit.
        evidence: its norms are used if present, else computed from states.
        scores: [N] saliency, higher = keep.
        kept: int64 [K], strictly increasing.
        config: its grouping, merge and epsilon.
        check: look at the values of kept, which waits for the device they are on.

    Raises:
        ValueError: shapes disagree or kept is not an increasing list of positions.
    """
    scores, kept = scores.to(states.device), kept.to(states.device)
    groups = group_tokens(states, kept, config, check=check)
    merged = merge_states(states, kept, groups, scores, config, check=check)
    norms = row_norms(states) if evidence.norms is None else evidence.norms.to(states.device)
    return Compressed(
        states=merged,
        kept=kept,
        groups=groups,
        scores=scores,
        measures=fidelity.measures(states, merged, groups, norms, kept),
    )


def compress(
    states: Tensor,
    config: QuickMergeConfig,
    *,
    layer_states: Sequence[Tensor] | None = None,
    attention: Sequence[Tensor] = (),
    values: Sequence[Tensor] = (),
    leverage: Tensor | None = None,
    token_ids: Sequence[int] | Sequence[Sequence[int]] | Tensor | None = None,
    special_ids: frozenset[int] = frozenset(),
    lengths: Sequence[int] | Tensor | None = None,
) -> Compressed | list[Compressed]:
    """Compress the states of one prompt, or of a ragged batch of prompts.

    Deterministic: the same input gives bit-identical output. A prompt whose protected
    positions or whose budget cover it comes back untouched. Fields that concern serving
    (enabled, min_tokens, encoder_layers, score_layers, delivery, ...) are not read.

    Args:
        states: [N, D], or [B, N, D] padded on the right.
        config: saliency "auto" means "query" if attention is given and the query may be seen,
            else "leverage" if that is given, else "entropy".
        layer_states: per score layer, the states that entropies are taken from, with the
            leading shape of states. Default: the states themselves.
        attention: per window layer from low to high, [H, W, N] or [B, H, W, N]: the attention
            of each head from the prompt's last W positions, rows in prompt order.
        values: per window layer, [KVH, N, d] or [B, KVH, N, d]: the values that this attention
            reads; for max_error.
        leverage: [N] or [B, N]: how much each token's keys stand out, the sum over layers of
            :func:`~qm_vllm.compress.leverage.standing_out`.
        token_ids: [N] or [B, N], for the protection of special tokens.
        special_ids: ids of the special tokens.
        lengths: [B], the true length of each prompt of a batch; default N. What lies beyond
            is ignored.

    Returns:
        One :class:`Compressed`, or a list of B for a batch.

    Raises:
        ConfigError: max_kept cannot hold the protected positions of a prompt.
        ValueError: a prompt is empty, a value is NaN or infinite, shapes disagree, or the
            saliency needs evidence that was not given.
    """
    layers = (states,) if layer_states is None else tuple(layer_states)
    if states.ndim == 2:
        if lengths is not None:
            raise ValueError("lengths belong to a batch [B, N, D]; cut a single prompt yourself")
        ids = None if token_ids is None else torch.as_tensor(token_ids)
        return _compress_one(
            states, config, layers, tuple(attention), tuple(values), leverage, ids, special_ids
        )
    if states.ndim != 3:
        raise ValueError(f"states must be [N, D] or [B, N, D], not {list(states.shape)}")
    batch, width = states.shape[:2]
    sizes = [width] * batch if lengths is None else [int(size) for size in lengths]
    if len(sizes) != batch or any(not 1 <= size <= width for size in sizes):
        raise ValueError(f"lengths must be {batch} numbers between 1 and {width}, not {sizes}")
    return [
        _compress_one(
            states[row, :size],
            config,
            tuple(layer[row, :size] for layer in layers),
            tuple(weights[row, ..., :size] for weights in attention),
            tuple(layer[row, :, :size] for layer in values),
            None if leverage is None else leverage[row, :size],
            None if token_ids is None else torch.as_tensor(token_ids[row])[:size],
            special_ids,
        )
        for row, size in enumerate(sizes)
    ]


def _compress_one(
    states: Tensor,
    config: QuickMergeConfig,
    layers: tuple[Tensor, ...],
    attention: tuple[Tensor, ...],
    values: tuple[Tensor, ...],
    leverage: Tensor | None,
    token_ids: Tensor | None,
    special_ids: frozenset[int],
) -> Compressed:
    check_states(states)
    for name, tensors in (
        ("states", (states,)), ("layer_states", layers), ("attention", attention),
        ("values", values), ("leverage", () if leverage is None else (leverage,)),
    ):
        if not all(_finite(tensor) for tensor in tensors):
            raise ValueError(f"{name} hold NaN or infinity; the prompt cannot be scored")
    count = states.shape[0]
    if config.saliency == "auto":
        looks = attention and config.effective_saliency == "query"
        blind = "entropy" if leverage is None else "leverage"
        config = replace(config, saliency="query" if looks else blind)
    protected = protected_mask(config, token_ids, count, special_ids)
    if keeps_all(config, count, int(protected.sum())):
        return _untouched(states)
    errors = None
    if config.max_error is not None:
        if not 0 < len(values) == len(attention):
            raise ValueError("max_error needs the attention and the values of the same layers")
        errors = partial(_errors, attention, values)
    evidence = Evidence.from_states(
        states, layers, logit_scale=config.logit_scale, needs=needs(config), attention=attention,
        leverage=leverage,
    )
    choice = choose(evidence, config, protected=protected, errors=errors)
    if choice.k == count:
        return _untouched(states)
    return finish(states, evidence, choice.scores, choice.kept, config, check=False)


def _finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite: such a value shows in the extremes."""
    if tensor.numel() == 0:
        return True
    return bool(torch.isfinite(torch.stack((tensor.amin(), tensor.amax()))).all())


def _errors(
    attention: tuple[Tensor, ...], values: tuple[Tensor, ...], order: Tensor, sizes: list[int]
) -> Tensor:
    """Relative attention errors [S] over all window layers."""
    return AttentionError.joined([
        AttentionError.of(weights, layer, order, sizes)
        for weights, layer in zip(attention, values, strict=True)
    ]).relative()


def _untouched(states: Tensor) -> Compressed:
    positions = torch.arange(states.shape[0], device=states.device)
    ones = torch.ones(states.shape[0], device=states.device)
    measures = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64, device=states.device)
    return Compressed(states, positions, positions.clone(), ones, measures)
