"""Keys that stand out in heads that look things up: query-blind, for native delivery."""

from __future__ import annotations

from torch import Tensor

from qm_vllm.compress.evidence import Evidence
from qm_vllm.compress.normalize import min_max
from qm_vllm.compress.saliency.base import Score
from qm_vllm.config import QuickMergeConfig


def score(evidence: Evidence, config: QuickMergeConfig) -> Tensor:
    """Min-max scaled sum over these heads (:func:`~qm_vllm.compress.leverage.standing_out`).

    Returns:
        [N] float32 in [0, 1].

    Raises:
        ValueError: the evidence holds no leverage.
    """
    evidence.require("leverage", "leverage")
    assert evidence.leverage is not None
    return min_max(evidence.leverage)


SCORE = Score("leverage", needs=frozenset({"leverage"}), options=frozenset(), score=score)
