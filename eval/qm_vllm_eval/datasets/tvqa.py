"""TVQA: questions with five answers about clips of TV shows, with subtitles.

Read are ``tvqa_train.jsonl``, ``tvqa_val.jsonl`` and ``tvqa_test_public.jsonl``; subtitles as a
folder of ``VID_NAME.srt`` or as ``tvqa_preprocessed_subtitles.jsonl`` (also one ``.json`` list);
and, if asked for, folders of frames (3 a second), ``SHOW_frames/VID_NAME/00001.jpg``. Files of
features are not read.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qm_vllm_eval.datasets.published import (
    PUBLISHED,
    PublishedRows,
    absent,
    clean,
    find,
    found,
    is_name,
    load_json,
    source_path,
)
from qm_vllm_eval.datasets.rows import DataRow, DataSetError, records
from qm_vllm_eval.localisation import Span

TVQA = PUBLISHED["tvqa"]
ANSWERS = 5
FRAMES_PER_SECOND = 3.0
_FILES = {"train": "tvqa_train", "validation": "tvqa_val", "test": "tvqa_test_public"}
_FOLDERS = ("", "tvqa_qa_release/", "data/")
_SUBTITLES = ("tvqa_preprocessed_subtitles.jsonl", "tvqa_preprocessed_subtitles.json",
              "tvqa_subtitles")  # fmt: skip
_SHOWS = ("bbt", "castle", "friends", "grey", "house", "met")
_TIME = r"(\d+):(\d\d):(\d\d[,.]\d{1,3})"
_TIMES = re.compile(rf"\s*{_TIME}\s*-->\s*{_TIME}.*")


@dataclass(frozen=True)
class Subtitle:
    """What is said from ``start`` to ``end``, in seconds of the clip."""

    start: float
    end: float
    text: str


@dataclass(frozen=True)
class TvqaRow(DataRow):
    """One question.

    Attributes:
        qid: as published. video: ``vid_name`` of the clip. show: the show's name, if told.
        question: what is asked. answers: the five to choose from.
        answer: place of the right one, from 0; -1 in the test split, which keeps them.
        window: the moment asked about, in seconds of the clip; None where it is NaN.
        subtitles: of the whole clip, in order.
        frames: folder of the clip's JPEG files; None unless frames were asked for.
    """

    qid: int = -1
    video: str = ""
    show: str = ""
    question: str = ""
    answers: tuple[str, ...] = ()
    answer: int = -1
    window: Span | None = None
    subtitles: tuple[Subtitle, ...] = field(default=(), repr=False)
    frames: Path | None = None

    @property
    def text(self) -> str:
        """The subtitles as text, one a line."""
        return "\n".join(subtitle.text for subtitle in self.subtitles)


def open_tvqa(
    source: str | Path,
    split: str = "validation",
    *,
    subtitles: str | Path | None = None,
    frames: str | Path | None = None,
) -> PublishedRows[TvqaRow]:
    """A split of TVQA in the order of its file.

    Args:
        source: the file of questions, or the folder that holds it (also in ``tvqa_qa_release``).
        split: "train", "validation" or "test" ("test_public"); a single file is read whole.
        subtitles: folder of ``.srt`` files or the file of all; None: looked for in the folder.
        frames: folder of ``SHOW_frames`` or of the clips' folders; None: rows have no frames.

    Raises:
        DataSetError: nothing is there, or a file is of another form.
    """
    path = source_path(TVQA, source, split)
    file = path
    if path.is_dir():
        names = [f"{folder}{_FILES[split]}.jsonl" for folder in _FOLDERS]
        file = found(TVQA, path, names, "questions")
    root = path if path.is_dir() else path.parent
    if subtitles is None:
        names = [f"{folder}{name}" for name in _SUBTITLES for folder in ("", "data/")]
        told = found(TVQA, root, names, "subtitles")
    else:
        told = Path(subtitles).expanduser()
    if not told.exists():
        raise absent(TVQA, f"there is no file or folder {told} with the subtitles")
    folder = None if frames is None else Path(frames).expanduser()
    if folder is not None and not folder.is_dir():
        raise absent(TVQA, f"there is no folder {folder} with the frames")
    said = None if told.is_dir() else _preprocessed(told)

    def read(skipped: Counter[str]) -> Iterator[TvqaRow]:
        for record in records(file, ("qid", "q", "vid_name"), _optional()):
            if record.reason:
                yield TvqaRow(record.place, reason=record.reason)
                continue
            row = _row(record.values, record.place)
            if row.usable:
                row = _with_subtitles(row, said, told)
            if row.usable and folder is not None:
                row = _with_frames(row, folder)
            yield row

    return PublishedRows(file.name, read)


def parse_srt(data: bytes) -> tuple[Subtitle, ...]:
    """The subtitles of an ``.srt`` file; text that is no UTF-8 is read as Latin-1.

    Raises:
        ValueError: it has text but no time.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    found: list[tuple[float, float, list[str]]] = []
    for line in text.splitlines():
        match = _TIMES.fullmatch(line)
        if match:
            times = [float(part.replace(",", ".")) for part in match.groups()]
            start, end = (times[at] * 3600 + times[at + 1] * 60 + times[at + 2] for at in (0, 3))
            if found and found[-1][2] and found[-1][2][-1].isdecimal():
                found[-1][2].pop()  # the number of this one
            found.append((start, end, []))
        elif line.strip() and found:
            found[-1][2].append(line.strip())
    if text.strip() and not found:
        raise ValueError("it has no line '00:00:01,000 --> 00:00:02,000'")
    return tuple(Subtitle(start, end, " ".join(lines)) for start, end, lines in found if lines)


def _optional() -> tuple[str, ...]:
    return (*(f"a{number}" for number in range(ANSWERS)), "answer_idx", "ts", "show_name")


def _row(values: dict[str, Any], place: str) -> TvqaRow:
    qid, video = values["qid"], values["vid_name"]
    if not isinstance(qid, int) or isinstance(qid, bool):
        return TvqaRow(place, reason=f"{place} has {qid!r:.40} as 'qid', not a number")
    answers = tuple(clean(values.get(f"a{number}")) for number in range(ANSWERS))
    row = TvqaRow(f"tvqa-{qid}", qid, clean(video), clean(values.get("show_name")),
                  clean(values["q"]), answers)  # fmt: skip
    if not is_name(video):
        return replace(row, reason=f"{place} has {video!r:.40} as 'vid_name', which is no name")
    if not row.question or not all(answers):
        return replace(row, reason=f"{place} lacks the question or one of the {ANSWERS} answers")
    answer = values.get("answer_idx")
    if answer is not None:
        if isinstance(answer, bool) or answer not in range(ANSWERS):
            return replace(row, reason=f"{place} has {answer!r:.40} as 'answer_idx'")
        row = replace(row, answer=int(answer))
    try:
        return replace(row, window=_window(values.get("ts")))
    except ValueError:
        return replace(row, reason=f"{place} has {values['ts']!r:.40} as 'ts', not '76.01-84.2'")


def _window(value: Any) -> Span | None:
    if value is None:
        return None
    start, end = (float(part) for part in str(value).split("-"))
    if math.isnan(start) or math.isnan(end):
        return None  # published so
    if not 0 <= start <= end < math.inf:
        raise ValueError
    return start, end


def _with_subtitles(
    row: TvqaRow, said: dict[str, tuple[Subtitle, ...] | str] | None, told: Path
) -> TvqaRow:
    if said is not None:
        held = said.get(row.video, f"{told.name} has no subtitles of {row.video}")
    else:
        file = told / f"{row.video}.srt"
        try:
            held = parse_srt(file.read_bytes())
        except FileNotFoundError:
            held = f"there are no subtitles {file}"
        except OSError as error:
            held = f"{file} cannot be read: {error.strerror or error}"
        except ValueError as error:
            held = f"{file} is no srt file: {error}"
    if isinstance(held, str):
        return replace(row, reason=held)
    return replace(row, subtitles=held)


def _with_frames(row: TvqaRow, folder: Path) -> TvqaRow:
    names = [f"{show}_frames/{row.video}" for show in _SHOWS]
    path = find(folder, [row.video, *names])
    if path is None or not path.is_dir() or next(path.glob("*.jpg"), None) is None:
        return replace(row, reason=f"there are no frames of {row.video} in {folder}")
    return replace(row, frames=path)


def _preprocessed(file: Path) -> dict[str, tuple[Subtitle, ...] | str]:
    """Subtitles by clip, or why those of a clip cannot be used."""
    if file.suffix == ".json":
        entries: Iterator[Any] = iter(load_json(file, list, "a list of clips"))
    elif file.suffix == ".jsonl":
        entries = (record.values for record in records(file, ("vid_name", "sub")))
    else:
        raise DataSetError(f"{file} is of no known kind; give a folder of .srt, .jsonl or .json")
    held: dict[str, tuple[Subtitle, ...] | str] = {}
    for entry in entries:
        name = entry.get("vid_name") if isinstance(entry, dict) else None
        if isinstance(name, str):
            held[name] = _subtitles(entry.get("sub"), f"{file.name} {name}")
    if not held:
        raise DataSetError(f"{file} has no clip with 'vid_name' and 'sub'")
    return held


def _subtitles(value: Any, place: str) -> tuple[Subtitle, ...] | str:
    try:
        return tuple(
            Subtitle(float(part["start"]), float(part["end"]), clean(part["text"]))
            for part in value
        )
    except (TypeError, ValueError, KeyError):
        return f"{place} has no list of 'start', 'end' and 'text' as 'sub'"
