"""Normalised entropy drop of the paper's appendix A (query-blind)."""

from __future__ import annotations

import torch
from torch import Tensor

from qm_vllm.compress.evidence import Evidence
from qm_vllm.compress.normalize import min_max
from qm_vllm.compress.saliency.base import Score
from qm_vllm.config import QuickMergeConfig

DELTA = 1e-6
"""The paper's delta > 0, in nats."""


def score(evidence: Evidence, config: QuickMergeConfig) -> Tensor:
    """``1 - min_max(NED)``, with ``NED = (H_in - H_out) / (H_in + delta)``, mean over layers.

    A high NED marks redundancy (appendix A, "Interpretation").

    Returns:
        [N] float32 in [0, 1].

    Raises:
        ValueError: the evidence lacks entropies or incoming entropies.
    """
    evidence.require("entropy", "ned")
    evidence.require("incoming", "ned")
    if len(evidence.entropies) != len(evidence.incoming):
        raise ValueError(
            f"saliency 'ned' needs as many incoming entropies ({len(evidence.incoming)}) as "
            f"outgoing ones ({len(evidence.entropies)})"
        )
    drops = [
        (inward - outward) / (inward + DELTA)
        for outward, inward in zip(evidence.entropies, evidence.incoming, strict=True)
    ]
    return 1 - min_max(torch.stack(drops).mean(0))


SCORE = Score(
    "ned",
    needs=frozenset({"entropy", "incoming"}),
    options=frozenset({"score_layers", "logit_scale"}),
    score=score,
)
