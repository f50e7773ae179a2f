"""One question about one context, as every task makes it and every method gets it."""

from __future__ import annotations

from dataclasses import dataclass

METRICS = (
    "all", "any", "rouge_l", "tokens", "none", "f1", "f1_line", "rouge_best", "edit", "numbers",
    "letter", "class", "words",
)
"""How a prediction is scored.

- all: share of the answers it holds, whatever their case (RULER's string_match_all).
- any: 1 if it holds any of them.
- rouge_l: F1 of the longest common subsequence of words with the target.
- tokens: share of the target's tokens that are the model's first choice after the right ones
  before them (needs no decoding).
- none: not at all.
- f1: token F1 as SQuAD has it, the best answer. f1_line: the same of the prediction's first line.
- rouge_best: ROUGE-L F1 with stemming, the best of the answers.
- edit, class, numbers: a line of code, a class, a number; :mod:`qm_vllm_eval.longbench_scores`.
- letter, words: a choice, the words of an answer; :mod:`qm_vllm_eval.choice_scores`.
"""

SPLITS = ("tune", "report")
"""Seeds for choosing an algorithm, and seeds that no choice has seen."""


def sample_id(task: str, length: int, split: str, index: int, query_visible: bool = True) -> str:
    """The name of a sample, known before it is built."""
    return f"{task}-{length}-{split}-{index}" + ("" if query_visible else "-blind")


@dataclass(frozen=True)
class Sample:
    """A context, what is asked about it, and what is right.

    The prompt is ``context`` + ``question`` in one user turn of the chat template, with
    ``answer_prefix`` as the first words of the reply (``chat=True``), or the plain text
    ``context`` + ``question`` (``chat=False``, ``answer_prefix`` empty). ``target`` follows.

    Attributes:
        sample_id: unique and stable, see :func:`sample_id`.
        task: name in the registry. family: the group that results are reported by.
        context: what may be compressed.
        question: what stands behind it; may be empty.
        answers: strings that a right prediction holds.
        target: the text whose NLL is measured.
        query_visible: whether the compressor may see the question.
        metric: one of :data:`METRICS`.
        max_new_tokens: length of the prediction, in tokens; 0 where the metric needs none.
        haystack: where the filler comes from.
        length: tokens of the whole prompt that were asked for.
        split: one of :data:`SPLITS`. index: number of the sample within it.
        choices: every answer that may be given, for the metrics "class" and "words".
        evidence: [start, end) in characters of the context: the parts that tell the answer, where
            the data say so.
        hint: what the compressor hears of the question to come, as an engine's option; "": nothing.
        turns: (role, text) of the conversation before the user's turn, with ``chat``; they may be
            compressed like the context.
        target_ids: the target's tokens, where it is what a model said and not what a text gives.
    """

    sample_id: str
    task: str
    family: str
    context: str
    question: str
    answers: tuple[str, ...]
    target: str
    query_visible: bool
    metric: str
    max_new_tokens: int
    haystack: str
    length: int
    split: str
    index: int
    answer_prefix: str = ""
    chat: bool = True
    hint: str = ""
    turns: tuple[tuple[str, str], ...] = ()
    target_ids: tuple[int, ...] = ()
    choices: tuple[str, ...] = ()
    evidence: tuple[tuple[int, int], ...] = ()
