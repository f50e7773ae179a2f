"""A synthetic set in the form of Ego4D NLQ, with events planted at known times.

Every query names a kind of event, and exactly one event of that kind happens in its clip. The
features of a clip are the sum of

- scenes: a vector that changes every ten to forty seconds,
- a slow walk: each row is nearly the row before it (``smoothness``), so that many rows can be
  merged without losing much, as in real video,
- a little white noise,
- in the rows of an event, its kind's direction times ``strength``. Each clip also has events of
  other kinds, so a model that finds "some event" is not enough.

The directions of the kinds depend on ``kinds_seed`` and the width alone: sets with other seeds
(training and validation) share them. Only a row that lies wholly inside a window holds its event,
and windows start and end on the borders of rows, so a perfect model scores 1 on every metric.
What chance scores on the default set is in docs/datasets.md: R@1 at IoU 0.5 near 0.006.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from qm_vllm_eval.datasets.ego4d_nlq import FEATURES_PER_SECOND
from qm_vllm_eval.datasets.ego4d_write import (
    Moment,
    clip_entry,
    video_entry,
    write_annotations,
    write_features,
)

QUERIES = (
    "Where did I put the red cup?",
    "When did I open the drawer?",
    "Who did I talk to at the door?",
    "What did I pour into the pan?",
    "When did I pick up the screwdriver?",
    "Where was the bicycle before I moved it?",
    "How many plates did I take from the shelf?",
    "Did I switch off the lamp?",
    "What colour was the box that I opened?",
    "When did I write something down?",
    "Where did I leave the keys?",
    "What did I cut with the knife?",
)
"""One for each kind of event; there are at most so many kinds."""


@dataclass(frozen=True)
class SyntheticSpec:
    """Sizes and shape of a synthetic set.

    Attributes:
        videos, clips_per_video, queries_per_clip: how many of each.
        kinds: kinds of events, at most ``len(QUERIES)``; events_per_clip: planted events, each
            of another kind, of which the first ``queries_per_clip`` are asked for.
        width: D of the features.
        clip_seconds, event_seconds: shortest and longest. The defaults give 300 to 900 rows a
            clip and 6 to 45 rows an event.
        strength: length of an event's vector. The background's rows have length about 1.
        smoothness: correlation of the slow walk between neighbours, in [0, 1).
        noise: length of the white noise.
        seed: everything but the kinds' directions. kinds_seed: those.

    Raises:
        ValueError: the numbers do not fit together.
    """

    videos: int = 16
    clips_per_video: int = 2
    queries_per_clip: int = 3
    events_per_clip: int = 5
    kinds: int = 8
    width: int = 64
    clip_seconds: tuple[float, float] = (160.0, 480.0)
    event_seconds: tuple[float, float] = (3.2, 24.0)
    strength: float = 1.5
    smoothness: float = 0.98
    noise: float = 0.1
    seed: int = 0
    kinds_seed: int = 0

    def __post_init__(self) -> None:
        """Checks the numbers."""
        if min(self.videos, self.clips_per_video, self.queries_per_clip) < 1:
            raise ValueError("need at least one video, one clip a video and one query a clip")
        if not self.queries_per_clip <= self.events_per_clip <= self.kinds <= len(QUERIES):
            raise ValueError(
                f"need queries ({self.queries_per_clip}) <= events a clip "
                f"({self.events_per_clip}) <= kinds ({self.kinds}) <= {len(QUERIES)}"
            )
        if self.width < self.kinds:
            raise ValueError(f"{self.kinds} kinds need a width of at least that, not {self.width}")
        if not 0 <= self.smoothness < 1:
            raise ValueError(f"smoothness {self.smoothness} is not in [0, 1)")
        if not 0 < self.clip_seconds[0] <= self.clip_seconds[1]:
            raise ValueError(f"clips of {self.clip_seconds} seconds")
        if not 0 < self.event_seconds[0] <= self.event_seconds[1]:
            raise ValueError(f"events of {self.event_seconds} seconds")
        share = self.events_per_clip * _rows(self.event_seconds[1])
        if share > _rows(self.clip_seconds[0]) * 0.8:
            raise ValueError("the events may not fit into the shortest clip; make them shorter")


def write_synthetic(folder: Path, split: str = "val", spec: SyntheticSpec | None = None) -> Path:
    """Writes ``nlq_SPLIT.json`` and ``features/VIDEO_UID.pt``; returns the path of the former.

    Equal arguments write equal files. Splits of one folder need different seeds.
    """
    spec = spec or SyntheticSpec()
    directions = kind_directions(spec.kinds, spec.width, spec.kinds_seed)
    videos = []
    for number in range(spec.videos):
        rng = np.random.default_rng([spec.seed, number])
        uid = f"synthetic-{split}-s{spec.seed}-{number:04d}"
        clips, parts, row = [], [], 0
        for clip in range(spec.clips_per_video):
            rows = _rows(rng.uniform(*spec.clip_seconds))
            features, moments = _clip(rows, rng, spec, directions)
            start, end = _seconds(row), _seconds(row + rows)
            clips.append(clip_entry(f"{uid}-c{clip}", start, end, moments))
            parts.append(features)
            row += rows
        write_features(folder, uid, torch.cat(parts))
        videos.append(video_entry(uid, clips, split))
    return write_annotations(folder, split, videos, f"synthetic, made by qm_vllm: {spec}")


def kind_directions(kinds: int, width: int, seed: int = 0) -> Tensor:
    """Unit vectors [kinds, width] at right angles to each other, one for each kind of event."""
    drawn = np.random.default_rng([seed, width]).standard_normal((width, width))
    orthogonal, upper = np.linalg.qr(drawn)
    # The signs of QR are a matter of the library; fixed so that all machines agree.
    return torch.from_numpy((orthogonal * np.sign(np.diag(upper))).T[:kinds].copy()).float()


def _clip(
    rows: int, rng: np.random.Generator, spec: SyntheticSpec, directions: Tensor
) -> tuple[Tensor, list[Moment]]:
    features = torch.from_numpy(_background(rows, rng, spec)).float()
    moments = []
    kinds = rng.permutation(spec.kinds)[: spec.events_per_clip]
    for kind, (low, high) in zip(kinds, _places(rows, rng, spec), strict=True):
        features[low:high] += spec.strength * directions[kind]
        moments.append(Moment(QUERIES[kind], (_seconds(low), _seconds(high)), "synthetic"))
    return features, moments[: spec.queries_per_clip]


def _background(rows: int, rng: np.random.Generator, spec: SyntheticSpec) -> np.ndarray:
    unit = 1 / math.sqrt(spec.width)
    scenes = np.empty((rows, spec.width))
    low = 0
    while low < rows:
        high = min(rows, low + _rows(rng.uniform(10, 40)))
        scenes[low:high] = rng.standard_normal(spec.width) * unit
        low = high
    walk = rng.standard_normal((rows, spec.width)) * unit
    step = math.sqrt(1 - spec.smoothness**2)
    for row in range(1, rows):
        walk[row] = spec.smoothness * walk[row - 1] + step * walk[row]
    white = rng.standard_normal((rows, spec.width)) * unit * spec.noise
    result: np.ndarray = (scenes + walk) / math.sqrt(2) + white
    return result


def _places(rows: int, rng: np.random.Generator, spec: SyntheticSpec) -> list[tuple[int, int]]:
    """Windows of rows that do not touch each other, in random order."""
    sizes = [_rows(rng.uniform(*spec.event_seconds)) for _ in range(spec.events_per_clip)]
    spare = rows - sum(sizes) - len(sizes)
    # Gaps before each event and after the last: a random split of the rows that are left.
    cuts = np.sort(rng.integers(0, spare + 1, len(sizes)))
    places, used = [], 0
    for cut, size in zip(cuts, sizes, strict=True):
        low = int(cut) + used
        places.append((low, low + size))
        used += size + 1
    return [places[i] for i in rng.permutation(len(places))]


def _rows(seconds: float) -> int:
    return max(1, round(seconds * FEATURES_PER_SECOND))


def _seconds(row: int) -> float:
    return row / FEATURES_PER_SECOND
