"""Scores that say which tokens to keep, one file a method, all behind one interface.

To add one, write ``saliency/NAME.py`` with its constants, its function ``score(evidence, config)``
and ``SCORE = Score("NAME", needs=..., options=..., score=score)``, and enter that in
:data:`SALIENCIES`. The name is also listed in ``qm_vllm.config.SALIENCIES``, which does without
torch. The tests run every registered score, and compare the two lists. Kinds of evidence that no
score has needed before are added to :class:`~qm_vllm.compress.evidence.Evidence`.
"""

from __future__ import annotations

from torch import Tensor

from qm_vllm.compress.evidence import Evidence
from qm_vllm.compress.saliency import entropy, leverage, ned, norm, query
from qm_vllm.compress.saliency.base import Score
from qm_vllm.config import ConfigError, QuickMergeConfig

SALIENCIES: dict[str, Score] = {
    one.name: one
    for one in (
        query.SCORE,
        entropy.SCORE,
        leverage.SCORE,
        norm.SCORE,
        ned.SCORE,
    )
}
"""Scores by configured name ("auto" resolves to one of these)."""


def needs(config: QuickMergeConfig) -> frozenset[str]:
    """Kinds of evidence to gather: the score's, alpha's entropy, max_error's attention."""
    wanted = _score(config).needs
    if config.alpha is not None:
        wanted |= entropy.SCORE.needs
    return wanted if config.max_error is None else wanted | {"attention"}


def score_tokens(evidence: Evidence, config: QuickMergeConfig) -> Tensor:
    """Score every token by the configured method.

    Args:
        evidence: of one prompt of N tokens; must hold what :func:`needs` names.
        config: chooses the method and its settings.

    Returns:
        [N] float32 in [0, 1], higher = keep.

    Raises:
        ValueError: evidence is missing; the message says which and how to supply it.
    """
    return _score(config).score(evidence, config)


def _score(config: QuickMergeConfig) -> Score:
    name = config.effective_saliency
    if name not in SALIENCIES:
        raise ConfigError(f"saliency={name!r} is unknown; allowed: {', '.join(SALIENCIES)}")
    return SALIENCIES[name]
