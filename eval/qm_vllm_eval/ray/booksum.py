"""BookSum as a task of the runner: chapters to summarise, ROUGE of what comes back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from qm_vllm import local_engine
from qm_vllm.errors import UserError
from qm_vllm_eval import rouge
from qm_vllm_eval.datasets.booksum import BookSumRow, chat_prompt, open_booksum
from qm_vllm_eval.datasets.micro_booksum import micro_rows
from qm_vllm_eval.ray.work import TOO_LONG, UNUSABLE, Answer, Unit

MICRO = "micro"


@dataclass(frozen=True)
class BookSumTask:
    """See :class:`qm_vllm_eval.ray.work.Task`.

    Attributes:
        data: "micro", or what :func:`open_booksum` takes. split: of that data.
        ratios: shares of the prompt to keep; 1.0 is plain vLLM.
        tokenizer: model folder or name.
        limit: most chapters; None: all.
        words: length to ask for. max_tokens: longest answer.
        most_tokens: longest prompt, with its template; a longer chapter gets a reason.
    """

    data: str
    split: str | None
    ratios: tuple[float, ...]
    tokenizer: str
    limit: int | None = None
    words: int = 150
    max_tokens: int = 220
    most_tokens: int = 8000
    min_tokens: int = 256

    name = "booksum"
    metrics = rouge.METRICS
    flags = ()

    def units(self) -> Iterator[Unit]:
        """Chapter by chapter, each at every ratio; see the protocol."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.tokenizer)
        for number, row in enumerate(self._rows()):
            if self.limit is not None and number >= self.limit:
                return
            yield from self._units(row, tokenizer)

    def score(self, facts: Mapping[str, Any], answer: Answer) -> dict[str, Any]:
        """ROUGE against the chapter's references, and the title."""
        return {"title": facts["title"], **rouge.rouge(answer.text, facts["references"])}

    def settings(self) -> dict[str, Any]:
        """See the protocol; the limit and the ratios may change from run to run."""
        held = asdict(self)
        for name in ("ratios", "limit", "tokenizer"):
            del held[name]
        return {"task": self.name, **held}

    def facts(self) -> dict[str, Any]:
        """See the protocol."""
        return {
            "data": "micro set of this project" if self.data == MICRO else self.data,
            "split": self.split, "words": self.words, "max_tokens": self.max_tokens,
            "most_tokens": self.most_tokens, "rouge": rouge.implementation(),
        }

    def _rows(self) -> Iterable[BookSumRow]:
        if self.data == MICRO:
            return micro_rows(self.split)
        return open_booksum(self.data, self.split or "test")

    def _units(self, row: BookSumRow, tokenizer: Any) -> Iterator[Unit]:
        ids: Sequence[int] = []
        failure, reason = (UNUSABLE, row.reason) if row.reason else ("", "")
        if not failure:
            messages = chat_prompt(row, self.words)
            try:
                ids = local_engine.chat_ids(tokenizer, messages, most=self.most_tokens)
                if len(ids) > self.most_tokens:
                    raise local_engine.TooLong(f"the prompt has {len(ids)} tokens")
            except local_engine.TooLong as error:
                failure = TOO_LONG
                reason = f"{error}; at most {self.most_tokens} are allowed"
            except UserError as error:  # template or tokenizer refuse this chapter, not the others
                failure, reason = UNUSABLE, str(error)
        for ratio in self.ratios:
            if failure:
                yield Unit(row.row_id, ratio, failure=failure, reason=reason)
                continue
            yield Unit(
                row.row_id, ratio,
                prompt={"prompt_token_ids": list(ids)},
                sampling={"max_tokens": self.max_tokens, "temperature": 0.0},
                options={"enabled": False} if ratio == 1.0 else
                        {"ratio": ratio, "min_tokens": self.min_tokens},
                facts={"references": list(row.references), "title": row.title},
            )
