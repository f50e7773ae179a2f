"""What a prior is trained on: pieces of documents, or files of features, with targets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CHARACTERS_PER_TOKEN = 4.5
HELD_OUT_SHARE = 0.1
TEXT_FILES = (".txt", ".md")
FEATURE_FILES = (".pt", ".npy", ".safetensors")


class DataError(ValueError):
    """The data cannot be used; the message says which file and what to change."""


@dataclass(frozen=True)
class Sample:
    """One sequence to train on.

    Attributes:
        source: what the encoder reads: text, or the path of a feature file.
        following: the text after it, which the token head learns to continue with.
        label: class of the whole sequence.
        span: half-open part of the sequence, as shares of its length, for the time-bin head.
        query: what the span answers; the prior reads it after the states.
    """

    source: str | Path
    following: str = ""
    label: int | None = None
    span: tuple[float, float] | None = None
    query: str = ""


@dataclass(frozen=True)
class DataSet:
    """Samples to train on and samples that training never sees."""

    train: Sequence[Sample]
    heldout: Sequence[Sample]

    @property
    def num_classes(self) -> int:
        """One more than the largest label; 0 without labels."""
        labels = [s.label for s in (*self.train, *self.heldout) if s.label is not None]
        return max(labels) + 1 if labels else 0

    @property
    def has_spans(self) -> bool:
        return any(sample.span is not None for sample in self.train)

    @property
    def has_queries(self) -> bool:
        return any(sample.query for sample in self.train)


def read(data: Sequence[Path], heldout: Sequence[Path], window_tokens: int) -> DataSet:
    """Collect samples from files and folders.

    Text (.txt, .md) is cut into pieces of about ``window_tokens``; without held-out files the
    last tenth of each text is held out. Feature files (.pt, .npy, .safetensors) and the rows of a
    manifest (.jsonl: ``path``, and ``label``, or ``span`` with or without ``query``) are a sample
    each; of these every tenth is held out.

    Args:
        data: files or folders.
        heldout: files or folders that are only measured on; may be empty.
        window_tokens: tokens of a text sample, about.

    Raises:
        DataError: a file is missing, empty, of an unknown kind, or a row is malformed.
    """
    train = _samples(data, window_tokens)
    if heldout:
        return _checked(DataSet([s for part in train for s in part],
                                [s for part in _samples(heldout, window_tokens) for s in part]))
    kept: list[Sample] = []
    out: list[Sample] = []
    singles = [part[0] for part in train if len(part) == 1]
    for part in train:
        if len(part) > 1:
            cut = len(part) - max(1, int(len(part) * HELD_OUT_SHARE))
            kept += part[:cut]
            out += part[cut:]
    every = int(1 / HELD_OUT_SHARE)
    out += singles[every - 1 :: every]
    kept += [sample for i, sample in enumerate(singles) if i % every != every - 1]
    return _checked(DataSet(kept, out))


def _checked(data: DataSet) -> DataSet:
    for name, part in (("train on", data.train), ("hold out", data.heldout)):
        if not part:
            raise DataError(
                f"the data leave nothing to {name}; give more files, or held-out ones by name"
            )
    return data


def _samples(paths: Sequence[Path], window_tokens: int) -> list[list[Sample]]:
    """Per document its samples in order; a feature file or manifest row is a list of one."""
    found: list[list[Sample]] = []
    for path in paths:
        if path.is_dir():
            files = sorted(
                p for p in path.iterdir()
                if p.suffix in (*TEXT_FILES, *FEATURE_FILES, ".jsonl")
            )
            if not files:
                raise DataError(
                    f"the folder {path.name} holds no .txt, .md, .jsonl or feature files"
                )
            found += _samples(files, window_tokens)
        elif not path.is_file():
            raise DataError(f"{path} does not exist; check --data and --heldout")
        elif path.suffix == ".jsonl":
            found += _manifest(path)
        elif path.suffix in FEATURE_FILES:
            found.append([Sample(path)])
        elif path.suffix in TEXT_FILES:
            found.append(_pieces(path, window_tokens))
        else:
            raise DataError(f"{path.name} is not a .txt, .md, .jsonl or feature file")
    return found


def _pieces(path: Path, window_tokens: int) -> list[Sample]:
    try:
        words = path.read_text(encoding="utf-8").split()
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name} is not UTF-8 text; convert it first") from error
    if not words:
        raise DataError(f"{path.name} is empty; leave it out")
    size = int(window_tokens * CHARACTERS_PER_TOKEN)
    pieces: list[str] = []
    piece: list[str] = []
    length = 0
    for word in words:
        piece.append(word)
        length += len(word) + 1
        if length >= size:
            pieces.append(" ".join(piece))
            piece, length = [], 0
    if piece and (length > size / 4 or not pieces):
        pieces.append(" ".join(piece))
    return [
        Sample(piece, following)
        for piece, following in zip(pieces, [*pieces[1:], ""], strict=True)
    ]


def _manifest(path: Path) -> list[list[Sample]]:
    rows: list[list[Sample]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        place = f"{path.name}, line {number}"
        try:
            row = json.loads(line)
            file = path.parent / row["path"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise DataError(f'{place}: not a JSON object with a "path"') from error
        if not file.is_file():
            raise DataError(f"{place}: {row['path']} does not exist")
        label, span = row.get("label"), row.get("span")
        if label is not None and not (isinstance(label, int) and label >= 0):
            raise DataError(f"{place}: label={label!r} must be a whole number from 0 up")
        if span is not None:
            whole = isinstance(span, list) and len(span) == 2
            if not (whole and 0 <= span[0] < span[1] <= 1):
                raise DataError(
                    f"{place}: span={span!r} must be two shares of the length, 0 <= start < "
                    "end <= 1"
                )
        query = row.get("query") or ""
        if not isinstance(query, str) or (query and span is None):
            raise DataError(f"{place}: query={query!r} must be text, and needs a span")
        rows.append([
            Sample(file, label=label, span=tuple(span) if span else None, query=query)
        ])
    if not rows:
        raise DataError(f"{path.name} has no rows")
    return rows
