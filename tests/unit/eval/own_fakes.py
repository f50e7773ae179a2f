"""Prompts of a user and an engine whose quality is a curve that the test draws."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from qm_vllm_eval.engines.base import Cell, make_row
from qm_vllm_eval.own.prompts import OwnPrompt, Reading, read_prompts
from qm_vllm_eval.row import Row
from qm_vllm_eval.sample import Sample
from tests.unit.eval.tokenizers import PlainTokenizer

NO_CONTEXT = 0.1
TOKENS = 1000


class Words(PlainTokenizer):
    """The tiny tokenizer, with a way back."""

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(f"word{token}" for token in ids)


class CurveEngine:
    """Full quality is 1, without context 0.1, at a ratio 1 - ``loss(ratio, index)``.

    Attributes:
        asked: indices of the prompts that it answered itself, each time. cells: all it ran.
    """

    def __init__(
        self, loss: Callable[[float, int], float], said: Sequence[int] = (5, 6, 7)
    ) -> None:
        self.loss, self.said = loss, list(said)
        self.tokenizer: Any = Words()
        self.asked: list[int] = []
        self.cells: list[tuple[int, str, float]] = []
        self.closed = False

    def answer(self, sample: Sample, most: int) -> list[int]:
        self.asked.append(sample.index)
        return self.said[:most]

    def evaluate(self, sample: Sample, cells: Sequence[Cell]) -> Iterator[list[Row]]:
        for cell in cells:
            method, ratio = cell[0].name, cell[1]
            self.cells.append((sample.index, method, ratio))
            quality = {"none": NO_CONTEXT, "plain": 1.0}.get(method)
            if quality is None:
                quality = 1.0 - self.loss(ratio, sample.index)
            yield [make_row(
                sample, cell, prompt_tokens=TOKENS, kept_tokens=ratio * TOKENS,
                bytes_per_token=100, nll=3.0 - 2.0 * quality, accuracy=quality, exact=False,
                seconds=0.1,
            )]

    def facts(self) -> dict[str, Any]:
        return {}

    def learned(self) -> dict[str, dict[str, str]]:
        return {}

    def close(self) -> None:
        self.closed = True


def write(path: Path, lines: Sequence[Any]) -> Path:
    """A file of these lines: texts as they are, others as JSON."""
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def plain_prompts(folder: Path, count: int) -> list[OwnPrompt]:
    """So many prompts without an answer."""
    file = write(folder / "prompts.jsonl", [{"prompt": f"text {i} of some words"}
                                            for i in range(count)])
    return read_prompts(file, Words(), Reading())[0]
