"""The score of one prediction, by the metric that its sample names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from qm_vllm_eval import choice_scores, longbench_scores
from qm_vllm_eval.answers import answer_scores
from qm_vllm_eval.rouge import rouge
from qm_vllm_eval.sample import METRICS


def match_score(
    metric: str, prediction: str, answers: Sequence[str], target: str,
    choices: Sequence[str] = (),
) -> float:
    """Score of one prediction in [0, 1]; NaN for "none" and "tokens".

    Args:
        metric: one of :data:`qm_vllm_eval.sample.METRICS`, which says what each of them is.
            "tokens" is NaN because a text alone cannot tell it.
        choices: every answer that may be given, for the metrics that count wrong ones.

    Raises:
        ValueError: no such metric, or no answers (choices) where the metric needs them.
    """
    if metric not in METRICS:
        raise ValueError(f"no metric {metric!r}; there are {', '.join(METRICS)}")
    if metric in ("none", "tokens"):
        return float("nan")
    if metric == "rouge_l":
        return float(_rouge().score(target, prediction)["rougeL"].fmeasure)
    if not answers:
        raise ValueError(f"metric {metric!r} needs at least one answer")
    if metric in ("all", "any"):
        said = prediction.lower()
        held = [answer.lower() in said for answer in answers]
        return float(any(held)) if metric == "any" else sum(held) / len(held)
    if metric in _OF_CHOICES:
        if not choices:
            raise ValueError(f"metric {metric!r} needs the choices that there are")
        return _OF_CHOICES[metric](prediction, answers, choices)
    return _OF_ANSWERS[metric](prediction, answers)


def _f1(prediction: str, answers: Sequence[str]) -> float:
    return answer_scores(prediction, answers)["f1"]


def _f1_line(prediction: str, answers: Sequence[str]) -> float:
    return _f1(longbench_scores.first_line(prediction), answers)


def _rouge_best(prediction: str, answers: Sequence[str]) -> float:
    return rouge(prediction, answers)["rougeL"]


_OF_ANSWERS: dict[str, Callable[[str, Sequence[str]], float]] = {
    "f1": _f1,
    "f1_line": _f1_line,
    "rouge_best": _rouge_best,
    "edit": longbench_scores.edit_score,
    "numbers": longbench_scores.number_score,
    "letter": choice_scores.letter_score,
}
_OF_CHOICES: dict[str, Callable[[str, Sequence[str], Sequence[str]], float]] = {
    "class": longbench_scores.class_score,
    "words": choice_scores.words_score,
}


@lru_cache(maxsize=1)
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]

    from qm_vllm_eval.rouge_words import Words

    return RougeScorer(["rougeL"], tokenizer=Words(stem=False))
