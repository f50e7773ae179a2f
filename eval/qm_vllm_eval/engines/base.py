"""What an engine of the bench does, and the sums that all engines share."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from qm_vllm.compress import round_to_blocks
from qm_vllm_eval.match import match_score
from qm_vllm_eval.methods import Method
from qm_vllm_eval.row import OK, Row
from qm_vllm_eval.sample import Sample

Cell = tuple[Method, float]
"""A method and a ratio."""

FEWEST = 8
"""No budget is smaller than this many tokens."""


class Engine(Protocol):
    """Evaluates samples."""

    tokenizer: Any

    def evaluate(self, sample: Sample, cells: Sequence[Cell]) -> Iterator[list[Row]]:
        """Rows of one sample, as they become ready; one row a cell."""

    def answer(self, sample: Sample, most: int) -> list[int]:
        """Token ids that the model says greedily to the whole prompt: ``most``, or up to its end
        token, which is not among them."""

    def facts(self) -> dict[str, Any]:
        """What run_meta.json says about the engine: dtype, versions, settings."""

    def learned(self) -> dict[str, dict[str, str]]:
        """What became known while evaluating: "methods" (settings) and "versions", by name."""

    def close(self) -> None:
        """End what the engine started."""


def budget(tokens: int, ratio: float, block_size: int) -> int:
    """K for a share of ``tokens``: whole blocks plus one, as the plug-in rounds it."""
    k = min(tokens, max(FEWEST, math.ceil(ratio * tokens - 1e-9)))
    return round_to_blocks(k, tokens, 1, block_size) if block_size > 1 else k


def make_row(
    sample: Sample,
    cell: Cell,
    *,
    prompt_tokens: int,
    kept_tokens: float = math.nan,
    bytes_per_token: float = math.nan,
    nll: float = math.nan,
    accuracy: float = math.nan,
    exact: bool | None = None,
    prediction: str = "",
    seconds: float = math.nan,
    status: str = OK,
    evidence_kept: float = math.nan,
) -> Row:
    """A row of the predictions table; ``accuracy`` is the score of the metric "tokens"."""
    match = accuracy if sample.metric == "tokens" else math.nan
    if status == OK and sample.metric != "tokens":
        match = match_score(
            sample.metric, prediction, sample.answers, sample.target, sample.choices
        )
    return Row(
        sample_id=sample.sample_id,
        task=sample.task,
        family=sample.family,
        query_visible=sample.query_visible,
        haystack=sample.haystack,
        length=sample.length,
        index=sample.index,
        method=cell[0].name,
        ratio=cell[1],
        prompt_tokens=prompt_tokens,
        kept_tokens=kept_tokens,
        kept_ratio=kept_tokens / prompt_tokens,
        nll=nll,
        exact=math.nan if exact is None else float(exact),
        match=match,
        kv_bytes=kept_tokens * bytes_per_token,
        seconds=seconds,
        prediction=prediction,
        target=sample.target,
        status=status,
        evidence_kept=evidence_kept,
    )
