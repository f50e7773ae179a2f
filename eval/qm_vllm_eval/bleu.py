"""Corpus BLEU-4 by sacrebleu, with several references for each text.

Reported with sacrebleu's signature: BLEU values compare only with equal tokenizers, case and
smoothing. The package's ``13a`` tokenizer is that of the WMT evaluations. COCO captions are
published with the PTB tokenizer of coco-caption (Java), lower case and no smoothing; the nearest
that this gives is ``lowercase=True``.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from qm_vllm_eval.metrics import LEVEL, RESAMPLES

ORDER = 4


def bleu(
    predictions: Sequence[str], references: Sequence[Sequence[str]], *, tokenize: str = "13a",
    lowercase: bool = False, resamples: int = RESAMPLES, seed: int = 0,
) -> dict[str, Any]:
    """BLEU-4 of a corpus in [0, 1], with its 95 % bootstrap interval over texts.

    Args:
        predictions: one for each text.
        references: for each text one or more; their number may differ between texts.
        tokenize: a tokenizer of sacrebleu.
        lowercase: whether case is ignored.

    Returns:
        mean (the corpus's BLEU, not a mean over texts), low, high; brevity_penalty, precisions
        (of 1 to 4 words), tokens (of predictions, references); signature.

    Raises:
        ValueError: no text, a text without references or with a blank one, unequal lengths, or no
            such tokenizer.
    """
    if not predictions or len(predictions) != len(references):
        raise ValueError(
            f"{len(predictions)} predictions and {len(references)} lists of references: give one "
            "list for each, and at least one text"
        )
    for number, row in enumerate(references):
        if isinstance(row, str) or not row or not all(text.strip() for text in row):
            raise ValueError(f"text {number} needs a list of references, none of them blank")
    scorer = _scorer(tokenize, lowercase)
    streams = [
        [row[i] if i < len(row) else None for row in references]
        for i in range(max(map(len, references)))
    ]
    score = scorer.corpus_score(list(predictions), streams)
    single = _scorer(tokenize, lowercase, single=True)
    counted = [
        single.sentence_score(text, list(row))
        for text, row in zip(predictions, references, strict=True)
    ]
    low, high = _interval(scorer, counted, resamples, seed)
    return {
        "mean": score.score / 100, "low": low, "high": high, "brevity_penalty": score.bp,
        "precisions": [value / 100 for value in score.precisions],
        "tokens": [score.sys_len, score.ref_len],
        "signature": str(scorer.get_signature()),
    }


def implementation(signature: str | None = None) -> dict[str, str]:
    """What computed the scores, for the results file."""
    facts = {"package": "sacrebleu", "version": version("sacrebleu"), "value": "BLEU-4, corpus"}
    return facts if signature is None else {**facts, "signature": signature}


def _scorer(tokenize: str, lowercase: bool, *, single: bool = False) -> Any:
    """``single``: for texts one by one, whose counts are the same; it only does not warn."""
    from sacrebleu.metrics import BLEU

    if tokenize not in BLEU.TOKENIZERS:
        known = ", ".join(sorted(BLEU.TOKENIZERS))
        raise ValueError(f"sacrebleu has no tokenizer {tokenize!r}; it has {known}")
    # force: no warning about predictions that end in " ."; it changes no score.
    return BLEU(
        tokenize=tokenize, lowercase=lowercase, max_ngram_order=ORDER, force=True,
        effective_order=single,
    )


def _interval(
    scorer: Any, counted: Sequence[Any], resamples: int, seed: int
) -> tuple[float, float]:
    """From the counts of each text: those of a corpus are their sums."""
    counts = np.array([[*one.counts, *one.totals, one.sys_len, one.ref_len] for one in counted])
    draw = np.random.default_rng(seed)
    values = []
    for _ in range(resamples):
        drawn = counts[draw.integers(0, len(counts), len(counts))].sum(0).tolist()
        values.append(scorer.compute_bleu(
            drawn[:ORDER], drawn[ORDER : 2 * ORDER], *drawn[2 * ORDER :],
            smooth_method=scorer.smooth_method, max_ngram_order=ORDER,
        ).score / 100)
    low, high = np.percentile(values, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(low), float(high)
