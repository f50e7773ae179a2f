"""UCF101: paths of videos with their actions, by the three published folds.

Videos are ``v_ApplyEyeMakeup_g01_c01.avi`` in a folder for each action, or flat; the lists
``classInd.txt``, ``trainlist01.txt`` and ``testlist01.txt`` (01 to 03) are in
``ucfTrainTestlist``. Names in the lists differ from each other in case (HandstandPushups).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qm_vllm_eval.datasets.published import (
    PUBLISHED,
    PublishedRows,
    file_problem,
    found,
    is_name,
    read_lines,
    source_path,
)
from qm_vllm_eval.datasets.rows import DataRow, DataSetError

UCF101 = PUBLISHED["ucf101"]
FOLDS = (1, 2, 3)
LISTS = (
    "ucfTrainTestlist",
    "../ucfTrainTestlist",
    "UCF101TrainTestSplits-RecognitionTask/ucfTrainTestlist",
    ".",
)
_VIDEO = re.compile(r"v_(\w+)_g(\d+)_c(\d+)")
_LINE = re.compile(r"(?:([\w.-]+)/)?(v_\w+\.avi)(?:\s+(\d+))?")


@dataclass(frozen=True)
class Ucf101Row(DataRow):
    """One video.

    Attributes:
        video: path of the file. action: its class, as in ``classInd.txt``.
        label: place of the action in ``classInd.txt``, from 0; -1 in a row without one.
        group, clip: videos of a group share people and background; a fold does not divide it.
    """

    video: Path = Path()
    action: str = ""
    label: int = -1
    group: int = 0
    clip: int = 0


def open_ucf101(
    source: str | Path, split: str = "test", fold: int = 1, *, lists: str | Path | None = None
) -> PublishedRows[Ucf101Row]:
    """A split of UCF101 in the order of its list.

    Args:
        source: folder with the videos: in ``UCF-101``, in folders of actions, or flat.
        split: "train" or "test". fold: 1, 2 or 3.
        lists: folder with ``classInd.txt`` and the lists; None: looked for below ``source``.

    Raises:
        DataSetError: nothing is there, a list is missing, or ``classInd.txt`` is no such file.
    """
    root = source_path(UCF101, source, split)
    if fold not in FOLDS:
        raise DataSetError(f"UCF101 has no fold {fold!r}; there are 1, 2, 3")
    name = f"{split}list{fold:02d}.txt"
    if lists is None:
        file = found(UCF101, root, [f"{folder}/{name}" for folder in LISTS], "list of videos")
    else:
        file = found(UCF101, Path(lists).expanduser(), [name], "list of videos")
    actions = _actions(found(UCF101, file.parent, ["classInd.txt"], "list of actions"))
    listed = read_lines(file)
    labels = {action.lower(): label for label, action in enumerate(actions)}
    folders = [path for path in (root / "UCF-101", root / "videos", root) if path.is_dir()]

    def read(skipped: Counter[str]) -> Iterator[Ucf101Row]:
        for number, line in enumerate(listed, 1):
            yield _row(line, f"{name} line {number}", actions, labels, folders)

    return PublishedRows(name, read, classes=actions)


def _actions(file: Path) -> list[str]:
    """The actions in the order of their numbers, which begin at 1 and have no gap."""
    held = {}
    for line in read_lines(file):
        match = re.fullmatch(r"(\d+)\s+(\S+)", line)
        if not match:
            raise DataSetError(f"{file} has the line {line!r:.60}, not '1 ApplyEyeMakeup'")
        held[int(match[1])] = match[2]
    if sorted(held) != list(range(1, len(held) + 1)):
        raise DataSetError(f"{file} does not number its actions 1 to {len(held)}")
    return [held[number] for number in sorted(held)]


def _row(
    line: str, place: str, actions: list[str], labels: dict[str, int], folders: list[Path]
) -> Ucf101Row:
    match = _LINE.fullmatch(line)
    parts = _VIDEO.fullmatch(match[2].removesuffix(".avi")) if match else None
    if not match or not parts or not is_name(match[2]):
        return Ucf101Row(
            place, reason=f"{place} has {line!r:.80}, not 'ACTION/v_ACTION_g01_c01.avi'"
        )
    name = match[2]
    label = labels.get((match[1] or parts[1]).lower(), -1)
    action = actions[label] if label >= 0 else ""
    video = _video(name, (match[1] or action, action, parts[1]), folders)
    reason = file_problem(video, "video")
    if label < 0:
        reason = f"{place}: {match[1] or parts[1]} is no action of classInd.txt"
    elif match[3] and int(match[3]) != label + 1:
        reason = f"{place} has the number {match[3]}, but {action} has {label + 1}"
    return Ucf101Row(name.removesuffix(".avi"), video, action, label, int(parts[2]), int(parts[3]),
                     reason=reason)  # fmt: skip


def _video(name: str, actions: tuple[str, ...], folders: list[Path]) -> Path:
    """Where the video is; if it is nowhere, where it should be."""
    paths = [folder / action / name for folder in folders for action in actions if action]
    paths += [folder / name for folder in folders]
    return next((path for path in paths if path.is_file()), paths[0])
