"""What a training run is made of."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TrainOptions:
    """Settings of one run; saved with its checkpoints, and compared when it resumes.

    Raises:
        ValueError: a value is out of range; the message names it and what is allowed.
    """

    minutes: float = 10.0
    """Time for training, evaluation included; over all parts of a run that was resumed."""
    batch_size: int = 16
    """Sequences per step."""
    window_tokens: int = 256
    """Source tokens per sequence, at most."""
    ratios: tuple[float, float] = (0.3, 0.6)
    """K / N of a training sequence is drawn evenly from here."""
    eval_ratio: float = 1 / 2.4
    """K / N of the held-out sequences; the paper's compression."""
    learning_rate: float = 1e-3
    warmup: float = 0.03
    """Share of the time in which the learning rate rises."""
    weight_decay: float = 0.01
    target_tokens: int = 0
    """Tokens after each window that the token head learns to continue with; 0: no token head."""
    learn_layers: bool = False
    """Learn how much each encoder layer's entropy counts, through the Gumbel masses. With frozen
    states this favours tokens that are easy to predict, so the paper's mean is the default."""
    temperatures: tuple[float, float] = (1.0, 0.1)
    """Gumbel temperature at the start and at the end."""
    heldout_sequences: int = 64
    eval_every: float = 60.0
    """Seconds between evaluations."""
    checkpoint_every: float = 60.0
    """Seconds between checkpoints."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("minutes", "learning_rate", "eval_every", "checkpoint_every"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name}={value} must be greater than 0")
        for name, low in (
            ("batch_size", 1), ("window_tokens", 8), ("heldout_sequences", 1),
            ("target_tokens", 0),
        ):
            if getattr(self, name) < low:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {low}")
        low_ratio, high_ratio = self.ratios
        if not 0 < low_ratio <= high_ratio <= 1:
            raise ValueError(f"ratios={self.ratios} must be two shares, 0 < low <= high <= 1")
        if not 0 < self.eval_ratio <= 1:
            raise ValueError(f"eval_ratio={self.eval_ratio} must be in (0, 1]")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup={self.warmup} must be in [0, 1)")
        if not all(value > 0 for value in self.temperatures):
            raise ValueError(f"temperatures={self.temperatures} must be greater than 0")

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> TrainOptions:
        """Undo :meth:`to_dict`, also after JSON."""
        known = {field.name for field in dataclasses.fields(cls)}
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in fields.items() if name in known
        }
        return cls(**values)
