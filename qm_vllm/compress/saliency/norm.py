"""Norm of the states at the encoder's exit (query-blind)."""

from __future__ import annotations

from torch import Tensor

from qm_vllm.compress.evidence import Evidence
from qm_vllm.compress.normalize import min_max
from qm_vllm.compress.saliency.base import Score
from qm_vllm.config import QuickMergeConfig


def score(evidence: Evidence, config: QuickMergeConfig) -> Tensor:
    """Min-max scaled L2 norm, the paper's "norm masking" (abstract and 4.1).

    Returns:
        [N] float32 in [0, 1].

    Raises:
        ValueError: the evidence holds no norms.
    """
    evidence.require("norm", "norm")
    assert evidence.norms is not None
    return min_max(evidence.norms)


SCORE = Score("norm", needs=frozenset({"norm"}), options=frozenset(), score=score)
