"""Opens every published data set by its name, from one path.

    for row in open_published("qasper", "qasper/", "test"):
        ...

Names, addresses and licences are :data:`qm_vllm_eval.datasets.published.PUBLISHED`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from qm_vllm_eval.datasets.babi import open_babi
from qm_vllm_eval.datasets.booksum import open_booksum
from qm_vllm_eval.datasets.coco_captions import open_coco
from qm_vllm_eval.datasets.ego4d_nlq import Ego4dNlq
from qm_vllm_eval.datasets.imagenet import open_imagenet
from qm_vllm_eval.datasets.leval import open_leval
from qm_vllm_eval.datasets.longbench import open_longbench
from qm_vllm_eval.datasets.published import (
    PUBLISHED,
    absent,
    check_split,
    found,
    is_hub_name,
    source_path,
)
from qm_vllm_eval.datasets.qasper import open_qasper
from qm_vllm_eval.datasets.qmsum import open_qmsum
from qm_vllm_eval.datasets.rows import DataRow, DataSetError
from qm_vllm_eval.datasets.something import open_something
from qm_vllm_eval.datasets.squality import open_squality
from qm_vllm_eval.datasets.tvqa import open_tvqa
from qm_vllm_eval.datasets.ucf101 import open_ucf101
from qm_vllm_eval.datasets.wikitext import open_wikitext

_NLQ = {"train": "nlq_train", "validation": "nlq_val"}
_FEATURES = ("features", "slowfast8x8_r101_k400", "slowfast")


def _booksum(source: str | Path, split: str) -> Iterable[DataRow]:
    of = PUBLISHED["booksum"]
    if is_hub_name(source):
        check_split(of, split)
        return open_booksum(source, split)
    return open_booksum(source_path(of, source, split), split)


def _ego4d_nlq(source: str | Path, split: str) -> Iterable[DataRow]:
    of = PUBLISHED["ego4d_nlq"]
    root = source_path(of, source, split)
    if not root.is_dir():
        raise DataSetError(f"{root} is no folder; give the one with {_NLQ[split]}.json")
    names = [f"{folder}{_NLQ[split]}.json" for folder in ("", "annotations/")]
    return Ego4dNlq(
        found(of, root, names, "annotations"), found(of, root, _FEATURES, "folder of features")
    )


OPENERS: dict[str, Callable[..., Iterable[DataRow]]] = {
    "booksum": _booksum,
    "ego4d_nlq": _ego4d_nlq,
    "wikitext": open_wikitext,
    "imagenet": open_imagenet,
    "ucf101": open_ucf101,
    "coco_captions": open_coco,
    "something": open_something,
    "tvqa": open_tvqa,
    "qasper": open_qasper,
    "longbench": open_longbench,
    "leval": open_leval,
    "squality": open_squality,
    "qmsum": open_qmsum,
    "babi": open_babi,
}
"""For each name of ``PUBLISHED`` what opens a split of it: ``opener(source, split)``."""


def open_published(
    name: str, source: str | Path | None, split: str, **options: Any
) -> Iterable[DataRow]:
    """The rows of one split; can be iterated over as often as needed.

    Args:
        name: of :data:`OPENERS`.
        source: a file or folder, or for sets with a ``hub`` name that name; None or "": not at
            hand.
        split: "train", "validation" or "test", if the set has it.
        options: what else the set's own function takes (``fold`` of UCF101, ``frames`` of TVQA,
            ``task`` of LongBench, L-Eval and bAbI).

    Raises:
        DataSetError: no such name or split; nothing there (the sentence says where to get the
            set and under which licence); or as the set's own loader.
    """
    if name not in OPENERS:
        raise DataSetError(f"there is no data set {name!r}; there are {', '.join(OPENERS)}")
    if source is None or str(source) == "":
        raise absent(PUBLISHED[name], f"no path is given for {name}")
    return OPENERS[name](source, split, **options)
