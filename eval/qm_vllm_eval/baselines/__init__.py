"""The methods of the paper's Tables 1 and 2, their controls and ablations, as torch modules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qm_vllm_eval.baselines.base import Method, Noise, Source, Tokens
from qm_vllm_eval.baselines.fixed_patches import FixedPatches
from qm_vllm_eval.baselines.no_context import NoContext
from qm_vllm_eval.baselines.quickmerge import QuickMerge, calibrate_alpha
from qm_vllm_eval.baselines.random_tokens import RandomTokens
from qm_vllm_eval.baselines.token_free import TokenFree
from qm_vllm_eval.baselines.token_learner import TokenLearner
from qm_vllm_eval.baselines.vq_vae import VqVae

__all__ = [
    "ABLATIONS", "CONTROLS", "METHODS", "PAPER_RATES", "TABLE_1", "Method", "Noise", "Source",
    "Spec", "Tokens", "calibrate_alpha",
]


@dataclass(frozen=True)
class Spec:
    """What a method must know of a data set.

    Attributes:
        width: D of the frozen encoder's states.
        num_tokens: N.
        max_bytes: U of the longest sequence.
        alpha: threshold of the entropy budget (:func:`calibrate_alpha`).
        factor: N / K of QuickMerge++ and of the controls; the paper's 2.37.
    """

    width: int
    num_tokens: int
    max_bytes: int
    alpha: float
    factor: float = 2.37


PAPER_RATES = {
    "Fixed Patches": 1.0,
    "VQ-VAE": 1.31,
    "Token-Free": 2.08,
    "TokenLearner": 1.83,
    "QuickMerge++": 2.37,
}
"""CompRate of Table 1, N / K."""


def _share(spec: Spec, name: str) -> int:
    return max(1, round(spec.num_tokens / PAPER_RATES[name]))


def _quickmerge(spec: Spec, **changes: Any) -> QuickMerge:
    settings: dict[str, Any] = {"factor": spec.factor, "alpha": spec.alpha} | changes
    return QuickMerge(spec.width, **settings)


def _named(name: str, make: Callable[[Spec], Method]) -> Callable[[Spec], Method]:
    def build(spec: Spec) -> Method:
        method = make(spec)
        method.name = name
        return method

    return build


_TABLE_1: dict[str, Callable[[Spec], Method]] = {
    "Fixed Patches": lambda spec: FixedPatches(spec.width),
    "VQ-VAE": lambda spec: VqVae(spec.width),
    "Token-Free": lambda spec: TokenFree(_share(spec, "Token-Free"), spec.max_bytes),
    "TokenLearner": lambda spec: TokenLearner(spec.width, _share(spec, "TokenLearner")),
    "QuickMerge++": _quickmerge,
}
_CONTROLS: dict[str, Callable[[Spec], Method]] = {
    "fixed patches at 2.37x": lambda spec: FixedPatches(spec.width, spec.factor),
    "random tokens at 2.37x": lambda spec: RandomTokens(spec.width, _quickmerge(spec)),
    "random tokens, AR prior": lambda spec: RandomTokens(spec.width, _quickmerge(spec), True),
    "no context": lambda spec: NoContext(spec.width),
}
_ABLATIONS: dict[str, Callable[[Spec], Method]] = {
    "- entropy budget": lambda spec: _quickmerge(spec, entropy_budget=False),
    "- AR prior": lambda spec: _quickmerge(spec, aligned=False),
    "- norm masking": lambda spec: _quickmerge(spec, norm_mask=0.0),
}
METHODS = {
    name: _named(name, make) for name, make in (_TABLE_1 | _CONTROLS | _ABLATIONS).items()
}
"""Every method by the name the tables print: ``METHODS[name](spec)``."""
TABLE_1, CONTROLS, ABLATIONS = tuple(_TABLE_1), tuple(_CONTROLS), tuple(_ABLATIONS)
"""Their names by where they stand, in the paper's order."""
