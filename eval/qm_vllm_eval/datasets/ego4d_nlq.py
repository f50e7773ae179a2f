"""Natural-language queries over egocentric video (Ego4D NLQ): annotations and features.

Annotations are ``nlq_train.json`` or ``nlq_val.json`` as published: videos hold clips, clips hold
annotations, annotations hold queries with a window in seconds of the clip. Features are one
``.pt`` file for each video, a tensor [T, D] with 1.875 rows a second (windows of 16 frames at
30 frames a second); a clip's rows are cut out of its video's. Ego4D itself is only given to
people who signed its licence; :mod:`qm_vllm_eval.datasets.ego4d_synthetic` makes files alike.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from qm_vllm.texts import half_pair
from qm_vllm_eval.datasets.rows import DataRow, DataSetError
from qm_vllm_eval.datasets.video_features import UnfitError, cut_features, load_features
from qm_vllm_eval.localisation import Span

FEATURES_PER_SECOND = 30 / 16
ZERO_LENGTH = 1 / 30
"""Seconds: a window shorter than one frame is flagged. Users counted 1,304 of length 0 in train and
val, 8.59 % (issue 14 of EGO4D/episodic-memory)."""
EMPTY_QUERY = "the query asks nothing"
_LONGEST = 1e9  # seconds


@dataclass(frozen=True, eq=False)
class NlqRow(DataRow):
    """One query about one clip.

    Attributes:
        video_uid, clip_uid, annotation_uid, query_idx: name the query; ``query_idx`` counts the
            empty queries too, as a submission has to.
        query, template: what is asked, and which of the published patterns it follows.
        clip_seconds: the clip's length.
        window: where the answer is, in seconds of the clip; None in the test split.
        zero_length: the window is shorter than a frame; at length 0 only the same window scores.
        features: [T, D] float32 of the clip; None in a row that has a reason.
    """

    video_uid: str = ""
    clip_uid: str = ""
    annotation_uid: str = ""
    query_idx: int = -1
    query: str = ""
    template: str = ""
    clip_seconds: float = 0.0
    window: Span | None = None
    zero_length: bool = False
    features: Tensor | None = field(default=None, repr=False)

    @property
    def key(self) -> tuple[str, str, int]:
        """What names the query in a submission."""
        return self.clip_uid, self.annotation_uid, self.query_idx


class Ego4dNlq:
    """Rows of an annotation file; iterate over it as often as needed.

    ``skipped`` counts, after a full iteration, the queries that ask nothing (null or "").
    Features are read one video at a time.
    """

    def __init__(
        self,
        annotations: str | Path,
        features: str | Path,
        *,
        width: int | None = None,
        features_per_second: float = FEATURES_PER_SECOND,
    ) -> None:
        """Reads the annotations; the features' files are opened later, one by one.

        Args:
            annotations: ``nlq_train.json``, ``nlq_val.json`` or one alike.
            features: folder with ``VIDEO_UID.pt``.
            width: D that every file must have; None: that of the first sound one.
            features_per_second: rows a second of all files.

        Raises:
            DataSetError: the annotations are no JSON of this form, or there is no such folder.
            ValueError: the rate is not positive and finite.
        """
        if not (math.isfinite(features_per_second) and features_per_second > 0):
            raise ValueError(f"{features_per_second} features a second; give more than 0")
        annotations, features = Path(annotations).expanduser(), Path(features).expanduser()
        self.videos = _videos(annotations)
        if not features.is_dir():
            raise DataSetError(f"there is no folder {features} with the features of the videos")
        self.name = annotations.name
        self.folder = features
        self.width = width
        self.features_per_second = features_per_second
        self.skipped: Counter[str] = Counter()

    def __iter__(self) -> Iterator[NlqRow]:
        """Rows in the order of the file; what cannot be used has a reason."""
        self.skipped = Counter()
        width = self.width
        for rows in self._by_video():
            whole: Tensor | str = ""
            if any(row.usable for row, _ in rows):
                try:
                    whole = load_features(self.folder, rows[0][0].video_uid, width)
                    width = whole.shape[1]
                except UnfitError as error:
                    whole = str(error)
            for row, span in rows:
                if row.reason == EMPTY_QUERY:
                    self.skipped[EMPTY_QUERY] += 1
                    continue
                yield self._with_features(row, span, whole) if row.usable else row

    def truths(self, *, zero_length: bool = True) -> dict[tuple[str, str, int], Span]:
        """The true window of every sound query by its key, without reading features.

        Args:
            zero_length: whether windows without length are among them, as in the challenge's
                own evaluation.
        """
        return {
            row.key: row.window
            for rows in self._by_video()
            for row, _ in rows
            if row.usable and row.window is not None and (zero_length or not row.zero_length)
        }

    def left_out(self) -> dict[str, int]:
        """How many queries of the file give no row, by reason, without reading features."""
        asked = (row.reason == EMPTY_QUERY for rows in self._by_video() for row, _ in rows)
        count = sum(asked)
        return {EMPTY_QUERY: count} if count else {}

    def _by_video(self) -> Iterator[list[tuple[NlqRow, Span]]]:
        """Per video the rows of :meth:`_rows`; a query that is there again gets a reason."""
        seen: set[tuple[str, str, int]] = set()
        for number, video in enumerate(self.videos):
            place = f"{self.name} videos[{number}]"
            rows: list[tuple[NlqRow, Span]] = []
            for row, span in self._rows(video, place):
                named = row.query_idx >= 0 and row.reason != EMPTY_QUERY
                if named and row.key in seen:
                    again = f"{place}: the query {row.row_id} is in the file more than once"
                    row = replace(row, row_id=f"{place} query {len(rows)}", reason=again)
                elif named:
                    seen.add(row.key)
                rows.append((row, span))
            yield rows

    def _rows(self, video: Any, place: str) -> Iterator[tuple[NlqRow, Span]]:
        """The rows of a video without features, each with its clip's place in the video."""
        try:
            uid = _text(video, "video_uid", place)
            clips = _list(video, "clips", place)
        except UnfitError as error:
            yield NlqRow(place, reason=str(error)), (0.0, 0.0)
            return
        for number, clip in enumerate(clips):
            where = f"{place}.clips[{number}]"
            try:
                base = NlqRow("", video_uid=uid, clip_uid=_text(clip, "clip_uid", where))
                span = _span(clip, "video_start_sec", "video_end_sec", where)
                base = replace(base, clip_seconds=span[1] - span[0])
                if base.clip_seconds <= 0:
                    raise UnfitError(f"{where} has no length: {span[0]} to {span[1]} s")
                if span[0] <= -ZERO_LENGTH:
                    raise UnfitError(f"{where} starts before its video, at {span[0]} s")
                annotations = _list(clip, "annotations", where)
            except UnfitError as error:
                yield NlqRow(where, video_uid=uid, reason=str(error)), (0.0, 0.0)
                continue
            for index, annotation in enumerate(annotations):
                for row in self._queries(base, annotation, f"{where}.annotations[{index}]"):
                    yield row, span

    def _queries(self, base: NlqRow, annotation: Any, place: str) -> Iterator[NlqRow]:
        try:
            uid = _text(annotation, "annotation_uid", place)
            queries = _list(annotation, "language_queries", place)
        except UnfitError as error:
            yield replace(base, row_id=place, reason=str(error))
            return
        for index, query in enumerate(queries):
            where = f"{place}.language_queries[{index}]"
            row = replace(
                base,
                row_id=f"{base.video_uid}/{base.clip_uid}/{uid}/{index}",
                annotation_uid=uid,
                query_idx=index,
            )
            if not isinstance(query, dict):
                yield replace(row, reason=f"{where} is no object")
                continue
            text = query.get("query")
            if text is None or (isinstance(text, str) and not text.strip()):
                yield replace(row, reason=EMPTY_QUERY)
                continue
            if not isinstance(text, str):
                yield replace(row, reason=f"{where} has a {type(text).__name__} as 'query'")
                continue
            row = replace(row, query=text.strip(), template=str(query.get("template") or ""))
            half = half_pair(text)
            if half:
                yield replace(row, reason=f"{where} has {half} in 'query', which is no text")
                continue
            if not re.search(r"\w", text):  # a prior reads words
                yield replace(row, reason=f"{where} has no word in 'query'")
                continue
            try:
                yield _with_window(row, query, where)
            except UnfitError as error:
                yield replace(row, reason=str(error))

    def _with_features(self, row: NlqRow, span: Span, whole: Tensor | str) -> NlqRow:
        if isinstance(whole, str):
            return replace(row, reason=whole)
        try:
            part = cut_features(whole, span, self.features_per_second, row.video_uid)
        except UnfitError as error:
            return replace(row, reason=str(error))
        return replace(row, features=part)


def _with_window(row: NlqRow, query: dict[str, Any], place: str) -> NlqRow:
    if query.get("clip_start_sec") is None and query.get("clip_end_sec") is None:
        return row  # the test split keeps its answers
    window = _span(query, "clip_start_sec", "clip_end_sec", place)
    if window[0] > window[1]:
        raise UnfitError(f"{place} ends before it starts: {window[0]} to {window[1]} s")
    if window[1] < 0 or window[0] > row.clip_seconds:
        raise UnfitError(
            f"{place} lies outside its clip: {window[0]} to {window[1]} s of {row.clip_seconds} s"
        )
    return replace(row, window=window, zero_length=window[1] - window[0] < ZERO_LENGTH)


def _videos(file: Path) -> list[Any]:
    try:
        held = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataSetError(f"{file} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DataSetError(f"{file} is no JSON: {error}") from error
    if not isinstance(held, dict) or not isinstance(held.get("videos"), list):
        raise DataSetError(f"{file} has no list 'videos'; give nlq_train.json or nlq_val.json")
    return list(held["videos"])


def _list(value: Any, key: str, place: str) -> list[Any]:
    held = value.get(key) if isinstance(value, dict) else None
    if not isinstance(held, list):
        raise UnfitError(f"{place} has no list {key!r}")
    return held


def _text(value: Any, key: str, place: str) -> str:
    held = value.get(key) if isinstance(value, dict) else None
    if not isinstance(held, str) or not held:
        raise UnfitError(f"{place} has no {key!r}")
    half = half_pair(held)
    if half:  # no file of results could name the row
        raise UnfitError(f"{place} has {half} in {key!r}, which is no text")
    return held


def _span(value: dict[str, Any], start: str, end: str, place: str) -> Span:
    times = []
    for key in (start, end):
        held = value.get(key)
        number = held if isinstance(held, int | float) and not isinstance(held, bool) else math.nan
        if not abs(number) < _LONGEST:
            raise UnfitError(f"{place} has {held!r:.40} as {key!r}, not a number of seconds")
        times.append(float(number))
    return times[0], times[1]
