"""What every score declares of itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from qm_vllm.compress.evidence import Evidence
from qm_vllm.config import QuickMergeConfig


@dataclass(frozen=True)
class Score:
    """One way to score tokens. Its constants stand beside it, in its file.

    Attributes:
        name: the value of ``QuickMergeConfig.saliency`` that chooses it.
        needs: kinds of evidence that it reads, of :data:`~qm_vllm.compress.evidence.KINDS`.
        options: fields of QuickMergeConfig that change it: those that it reads, and those that
            say which layers its evidence comes from and how it is computed. Every score also
            depends on ``encoder_layers``, up to which the prompt is encoded.
        score: ``score(evidence, config)``, [N] float32 in [0, 1], higher = keep. It raises
            ValueError where evidence is missing.
    """

    name: str
    needs: frozenset[str]
    options: frozenset[str]
    score: Callable[[Evidence, QuickMergeConfig], Tensor]
