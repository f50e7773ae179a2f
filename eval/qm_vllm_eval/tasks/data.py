"""Published data that some tasks are made of, read from one folder, in halves by document.

The folder is ``$QM_VLLM_DATA``, else ``data`` in the cache folder. Nothing is fetched or kept here;
docs/quality.md says which file comes from where.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from qm_vllm.assets.cache import cache_folder
from qm_vllm_eval.datasets.rows import DataSetError
from qm_vllm_eval.haystacks import HaystackError

Document = TypeVar("Document")

PAPERS = "scisummnet/papers.jsonl"
CODE = ("minilongbench_en/lcc.jsonl", "minilongbench_en/repobench-p.jsonl")
SQUAD = "squad_hotpot/xquad.en.json"
HOTPOT = "squad_hotpot/hotpotqa_dev_100.json"
INTENTS = "icl_intents/clinc150.json"
ARTICLES = "wikitext/wiki.test.raw"
CHARACTERS = 5
"""Characters that a document must have for each token of a prompt that it fills."""


def data_folder() -> Path:
    """Where the files are looked for, whether or not they are there."""
    named = os.environ.get("QM_VLLM_DATA")
    return Path(named).expanduser() if named else cache_folder() / "data"


def check(names: Iterable[str]) -> None:
    """Refuse early what could not be read later.

    Raises:
        HaystackError: one of the files is not there.
    """
    for name in names:
        if not (data_folder() / name).is_file():
            raise HaystackError(
                f"the data file {name} is missing in {data_folder()}; put it there as "
                "docs/quality.md says, or set QM_VLLM_DATA to the folder that holds it"
            )


def text_of(name: str) -> str:
    """A file of the folder as text.

    Raises:
        HaystackError: it is not there.
    """
    check([name])
    return (data_folder() / name).read_text(encoding="utf-8")


def json_of(name: str) -> Any:
    """What a JSON file holds, or a list of what the lines of a .jsonl file hold.

    Raises:
        HaystackError: it is not there.
    """
    return _json_of(data_folder(), name)


def rows_of(opener: Callable[[Path], Iterable[Document]], name: str) -> Sequence[Document]:
    """The rows of a file of the folder, by its data set's loader; read once.

    Raises:
        HaystackError: it is not there, or cannot be read.
    """
    check([name])
    try:
        rows: Sequence[Document] = _rows_of(opener, data_folder() / name)
    except DataSetError as error:
        raise HaystackError(str(error)) from error
    return rows


def half(documents: Sequence[Document], split: str) -> list[Document]:
    """Every other document: those of even number for "tune", of odd number for "report"."""
    return list(documents[("tune", "report").index(split) :: 2])


def turn_of(documents: Sequence[Document], turn: int, what: str) -> Document:
    """The documents one after the other, again from the first one after the last.

    Raises:
        ValueError: there is none.
    """
    if not documents:
        raise ValueError(f"no {what} of the data fills this length; take a smaller one")
    return documents[turn % len(documents)]


@lru_cache(maxsize=32)
def _rows_of(opener: Callable[[Path], Iterable[Any]], file: Path) -> tuple[Any, ...]:
    return tuple(opener(file))


@lru_cache(maxsize=16)
def _json_of(folder: Path, name: str) -> Any:
    text = text_of(name)
    if name.endswith(".jsonl"):
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    return json.loads(text)
