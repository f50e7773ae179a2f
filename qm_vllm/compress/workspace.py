"""How much memory the pure code takes beside the states that it is given."""

from __future__ import annotations

from qm_vllm.compress import entropy, evidence, fidelity, merge
from qm_vllm.compress.grouping import knn
from qm_vllm.compress.saliency import needs
from qm_vllm.config import QuickMergeConfig

MOST_LAYERS = 24
"""Score layers that are allowed for where the configuration does not name them: a sixth of a
decoder of 144 layers."""
HELD = 64
"""Bytes a token of the vectors [N] that stay: norms, attention, scores, order, kept, groups."""
SCORING = 384
"""Bytes a token while it is scored and sorted; the query score takes most: 192, and 96 more where
a sort needs room of its own."""
GROUPING = 128
"""Bytes a token of the indices that grouping and merging take."""
FUSED = 2048
"""Bytes a token of the sums of the Triton kernel (:mod:`qm_vllm.compress.entropy_triton`)."""


def workspace_bytes(
    num_tokens: int, width: int, bytes_per_value: int, *, config: QuickMergeConfig,
    kept: int | None = None,
) -> int:
    """Upper bound of what scoring, choosing and merging one prompt hold beside its states.

    What :meth:`Evidence.observe_layer <qm_vllm.compress.evidence.Evidence.observe_layer>`,
    :func:`~qm_vllm.compress.evidence.row_norms`, :func:`~qm_vllm.compress.choice.choose` and
    :func:`~qm_vllm.compress.pipeline.finish` allocate on the device of the states, the merged
    states [K, D] included, at the moment when it is most. Not included: attention weights
    [H, W, N] and their errors, which the caller brings, the Python objects of grouping="chain",
    and what libraries allocate past torch.

    Args:
        num_tokens: N.
        width: D.
        bytes_per_value: of the states.
        config: its score, grouping, merge and max_kept.
        kept: K or a bound on it, where it is known.

    Returns:
        Bytes.
    """
    size = num_tokens * width
    work = max(4, bytes_per_value)
    kinds = needs(config)
    held = num_tokens * HELD
    phases = [num_tokens * SCORING, min(num_tokens, evidence.ROWS) * width * work]
    if kinds & {"entropy", "incoming"}:
        first, last = config.score_layers or (0, MOST_LAYERS)
        held += num_tokens * 8 * (last - first)
        # Each score layer's entropies in a stack, before their mean is taken.
        phases[0] += num_tokens * 8 * (last - first)
        phases.append(_entropy_bytes(num_tokens, width, bytes_per_value, config))
    indices = num_tokens * GROUPING
    if config.grouping in ("knn", "chain"):
        near = (knn.ROWS + 2 * knn.WINDOW) * (4 * width + 32 * knn.ROWS)
        rows = num_tokens * width * 4 + max(_scaled_bytes(num_tokens, width), near)
        phases.append(indices + rows)
    most_kept = min(num_tokens, config.max_kept or num_tokens, kept or num_tokens)
    merged = most_kept * width * bytes_per_value
    moved = 0
    if config.merge != "select":
        moved = 3 * min(max(merge.AT_ONCE, num_tokens * work), size * work)
    # A row in float32, what stands for it in both types, and one of these in float64.
    compared = min(num_tokens, fidelity.rows_at_once(width)) * width * (16 + bytes_per_value)
    phases.append(merged + max(indices + moved, compared))
    return held + max(phases)


def _scaled_bytes(num_tokens: int, width: int) -> int:
    """Rows that are being brought to norm 1: three copies in float64, of some at a time."""
    return 3 * 8 * min(num_tokens, entropy.ROWS) * width


def _entropy_bytes(
    num_tokens: int, width: int, bytes_per_value: int, config: QuickMergeConfig
) -> int:
    """The larger of what the two ways of :func:`~qm_vllm.compress.entropy.attention_entropy` hold:
    float32 (or float64) rows and two panels of products, or rows in the states' type and the
    sums of a kernel that writes no products."""
    double = bytes_per_value > 4 or config.logit_scale > entropy.FLOAT32_MAX_SCALE
    value = 8 if double else 4
    tile, panel = entropy.TILE, entropy.TILE * entropy.PANEL
    cells = min(tile, num_tokens) * min(panel, num_tokens)
    sums = 16 * 8 * num_tokens  # at most two weights and two sums a token in float64, with copies
    panels = max(2 * value * cells, _scaled_bytes(num_tokens, width))
    products = num_tokens * width * value + panels
    fused = num_tokens * (width * bytes_per_value + FUSED) if bytes_per_value == 2 else 0
    return sums + max(products, fused)
