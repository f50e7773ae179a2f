"""TVQA and QASPER as tasks of the runner: a text and a question for the served model.

The prompt is one turn: the subtitles of a clip or a whole paper, then the question. TVQA is asked
without frames, as the model reads text; it answers with one of five letters, which are the only
tokens it may say. QASPER's answers are free and short, and scored as the official evaluator does:
token F1, the best of the references, "Unanswerable" if the paper does not say.

QuickMerge++ compresses the whole prompt; of the question at its end as much is protected as fits
into half of the budget.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from qm_vllm import local_engine
from qm_vllm_eval import answers
from qm_vllm_eval.datasets.catalogue import open_published
from qm_vllm_eval.datasets.qasper import QasperRow
from qm_vllm_eval.datasets.tvqa import ANSWERS, TvqaRow
from qm_vllm_eval.ray.replica import Replica
from qm_vllm_eval.ray.work import TOO_LONG, UNUSABLE, Answer, EngineSettings, Unit

TVQA, QASPER = "tvqa", "qasper"
SPLITS = {TVQA: "validation", QASPER: "test"}
"""TVQA keeps the answers of its test split."""
METRICS = {TVQA: ("accuracy",), QASPER: answers.METRICS}
LETTERS = string.ascii_uppercase[:ANSWERS]
LEAST_TAIL = 32
"""Tokens at the prompt's end that the plug-in protects by itself."""


@dataclass(frozen=True)
class QuestionTask:
    """See :class:`qm_vllm_eval.ray.work.Task`.

    Attributes:
        name: "tvqa" or "qasper". source: as :func:`open_published` takes it.
        ratios: shares of the prompt to keep; 1.0 is plain vLLM.
        tokenizer: model folder or name.
        limit: most questions; None: all.
        max_tokens: longest answer of QASPER.
        most_tokens: longest prompt, with its template; a longer one gets a reason.
        min_tokens: shorter prompts pass untouched.
    """

    name: str
    source: str
    ratios: tuple[float, ...]
    tokenizer: str
    limit: int | None = None
    max_tokens: int = 40
    most_tokens: int = 7900
    min_tokens: int = 16

    flags = ()

    @property
    def metrics(self) -> tuple[str, ...]:
        """accuracy, or f1 and exact_match; each in [0, 1]."""
        return METRICS[self.name]

    def units(self) -> Iterator[Unit]:
        """Question by question, each at every ratio; see the protocol."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.tokenizer)
        rows: Iterable[Any] = open_published(self.name, self.source, SPLITS[self.name])
        for number, row in enumerate(rows):
            if self.limit is not None and number >= self.limit:
                return
            yield from self.of_row(row, tokenizer)

    def of_row(self, row: TvqaRow | QasperRow, tokenizer: Any) -> Iterator[Unit]:
        """One question at every ratio.

        Raises:
            ValueError: a letter is not one token of the model.
        """
        failure, reason = (UNUSABLE, row.reason) if row.reason else ("", "")
        if not failure and isinstance(row, TvqaRow) and row.answer < 0:
            failure, reason = UNUSABLE, f"{row.row_id}: the right answer is not told"
        ids: list[int] = []
        if not failure:
            ids = local_engine.chat_ids(tokenizer, messages(row))
            if len(ids) > self.most_tokens:
                failure = TOO_LONG
                reason = f"the prompt has {len(ids)} tokens; at most {self.most_tokens} are allowed"
        for ratio in self.ratios:
            if failure:
                yield Unit(row.row_id, ratio, failure=failure, reason=reason)
                continue
            yield Unit(
                row.row_id, ratio, prompt={"prompt_token_ids": ids},
                sampling={"temperature": 0.0, **self._said(row, tokenizer)},
                options=self._options(row, tokenizer, ids, ratio),
                facts={"answer": LETTERS[row.answer]} if isinstance(row, TvqaRow)
                else {"references": list(row.references)},
            )

    def score(self, facts: Mapping[str, Any], answer: Answer) -> dict[str, Any]:
        """Whether the letter is right; or F1 and exact match of the answer's first line."""
        if "answer" in facts:
            return {"accuracy": float(answer.text.strip() == facts["answer"])}
        lines = [line.strip() for line in answer.text.splitlines() if line.strip()]
        scores: dict[str, Any] = answers.answer_scores(
            lines[0] if lines else "", facts["references"]
        )
        return scores

    def settings(self) -> dict[str, Any]:
        """See the protocol; the limit and the ratios may change from run to run."""
        held = asdict(self) | {"source": Path(self.source).name}
        for name in ("name", "ratios", "limit", "tokenizer"):
            del held[name]
        return {"task": self.name, **held}

    def facts(self) -> dict[str, Any]:
        """See the protocol."""
        return {
            "data": Path(self.source).name, "split": SPLITS[self.name],
            "most_tokens": self.most_tokens,
            "scorer": answers.implementation() if self.name == QASPER else "the letter",
        }

    def _said(self, row: TvqaRow | QasperRow, tokenizer: Any) -> dict[str, Any]:
        if isinstance(row, QasperRow):
            return {"max_tokens": self.max_tokens}
        return {"max_tokens": 1, "allowed_token_ids": letter_ids(tokenizer)}

    def _options(
        self, row: TvqaRow | QasperRow, tokenizer: Any, ids: Sequence[int], ratio: float
    ) -> dict[str, Any]:
        if ratio == 1.0:
            return {"enabled": False}
        without = local_engine.chat_ids(tokenizer, messages(row, context=""))
        tail = max(LEAST_TAIL, shared_tail(ids, without))
        return {
            # Natively the first token is sampled over the whole prompt: a letter would say nothing.
            "delivery": "inject",
            "ratio": ratio, "min_tokens": self.min_tokens,
            "protect_last": max(1, min(tail, int(ratio * len(ids)) // 2)),
        }


def messages(row: TvqaRow | QasperRow, context: str | None = None) -> list[dict[str, str]]:
    """Chat messages of a question: the text first, then what is asked.

    Args:
        context: in place of the row's text.
    """
    text = row.text if context is None else context
    if isinstance(row, TvqaRow):
        options = "\n".join(
            f"{letter}. {said}" for letter, said in zip(LETTERS, row.answers, strict=True)
        )
        asked = (
            "The text above is what is said in a clip of a TV show.\n"
            f"Question: {row.question}\n{options}\nAnswer with one letter, A to {LETTERS[-1]}."
        )
    else:
        asked = (
            "The text above is a scientific paper.\n"
            f"Question: {row.question}\nAnswer with a few words of the paper, or with Yes or No. "
            'If the paper does not say, answer "Unanswerable". Give the answer alone.'
        )
    return [{"role": "user", "content": f"{text}\n\n---\n\n{asked}"}]


def letter_ids(tokenizer: Any) -> list[int]:
    """The token of each letter of :data:`LETTERS`.

    Raises:
        ValueError: a letter is not one token.
    """
    found = [tokenizer.encode(letter, add_special_tokens=False) for letter in LETTERS]
    if any(len(ids) != 1 for ids in found):
        raise ValueError(f"the letters {LETTERS} are not one token each of this model")
    return [ids[0] for ids in found]


def shared_tail(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids at the ends of two lists are equal."""
    count = 0
    while count < min(len(one), len(other)) and one[-1 - count] == other[-1 - count]:
        count += 1
    return count


class SharedReplica(Replica):
    """A replica whose engine stays for the next one of equal settings in this process."""

    _held: ClassVar[tuple[EngineSettings, Any] | None] = None

    def __init__(self, settings: EngineSettings, name: str = "local") -> None:
        """Take the engine that is there, or start one; see :class:`Replica`."""
        if SharedReplica._held is not None and SharedReplica._held[0] == settings:
            self.name, self.llm = name, SharedReplica._held[1]
            self._running, self._ended = {}, []
            return
        super().__init__(settings, name)
        SharedReplica._held = (settings, self.llm)

    def close(self) -> None:
        """Nothing: the engine ends with the process."""
