"""ROUGE of summaries, as the long-document literature computes it.

The package ``rouge-score`` with its stemmer and the words of :mod:`.rouge_words`: ROUGE-1,
ROUGE-2, ROUGE-L over the whole text and ROUGE-Lsum over sentences. Where a text has several
references, each metric takes the reference with the highest F (the maximum, metric by metric,
not one reference for all of them).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from importlib.metadata import version
from typing import Any

from qm_vllm_eval import rouge_words
from qm_vllm_eval.metrics import mean_interval

METRICS = ("rouge1", "rouge2", "rougeL", "rougeLsum")

_END = re.compile(r"(?<=[.!?])[\"')\]\u201d\u2019]*\s+")
_FULL_STOPS = "\u3002\uff01\uff1f"  # of Chinese and Japanese: a sentence ends without a space
_FULL_STOP = re.compile(rf"(?<=[{_FULL_STOPS}])[\"')\]\u201d\u2019\u300d\u300f\uff09]*\s*")
_OPENER = re.compile(r"[\"'(\[\u201c\u2018]*[A-Z0-9]")
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\"'])(?:Mr|Mrs|Ms|Messrs|Dr|Prof|St|Sr|Jr|Rev|Capt|Col|Gen|Lt|Hon|vs|viz|cf|etc"
    r"|e\.g|i\.e|vol|ch|pp?|No|[A-Z])\.$"
)


def rouge(prediction: str, references: Sequence[str]) -> dict[str, float]:
    """F of every metric of :data:`METRICS` in [0, 1]; an empty prediction scores 0.

    Raises:
        ValueError: there is no reference, or one has no word to compare with.
    """
    if not references:
        raise ValueError("a prediction needs at least one reference to be scored")
    scorer = _scorer()
    predicted = as_lines(prediction)
    best = dict.fromkeys(METRICS, 0.0)
    for reference in references:
        if not rouge_words.has_word(reference):
            raise ValueError("a reference holds no word; leave it out")
        # Line ends matter to rougeLsum alone: the others see words.
        scores = scorer.score(as_lines(reference), predicted)
        for metric in METRICS:
            best[metric] = max(best[metric], float(scores[metric].fmeasure))
    return best


def mean_rouge(
    scores: Iterable[Mapping[str, float]], *, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Per metric the mean over texts with its 95 % bootstrap interval: mean, low, high.

    NaN where there are no texts.
    """
    rows = list(scores)
    return {
        metric: mean_interval([row[metric] for row in rows], seed=seed) for metric in METRICS
    }


def implementation() -> dict[str, str | bool]:
    """What computed the scores, for the results file."""
    return {
        "package": "rouge-score",
        "version": version("rouge-score"),
        "stemmer": True,
        "words": rouge_words.NAME,
        "value": "F1",
        "references": "maximum over the references, metric by metric",
        "sentences": "qm_vllm_eval.rouge.sentences (rules, no model), joined by line ends",
    }


def as_lines(text: str) -> str:
    """One sentence a line, as rouge-score wants it for ROUGE-Lsum."""
    return "\n".join(sentences(text))


def sentences(text: str) -> list[str]:
    """Sentences by rules.

    A sentence ends at a line end, or after ``.``, ``!`` or ``?`` (and closing quotes) where the
    next word begins with a capital letter or a digit; but not after a title, an initial or a
    common abbreviation ("Mr. Darcy", "J. Smith", "e.g. This"). It also ends after an ideographic
    full stop or a full-width mark, whatever follows.
    """
    result = []
    for line in _FULL_STOP.sub("\\g<0>\n", text).splitlines():
        start = 0
        for end in _END.finditer(line):
            before = line[start : end.start()]
            if not _OPENER.match(line, end.end()) or _ABBREVIATION.search(before):
                continue
            result.append(line[start : end.end()].strip())
            start = end.end()
        result.append(line[start:].strip())
    return [sentence for sentence in result if sentence]


@lru_cache(maxsize=1)
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]

    return RougeScorer(list(METRICS), tokenizer=_words())


@lru_cache(maxsize=1)
def _words() -> rouge_words.Words:
    return rouge_words.Words(stem=True)
