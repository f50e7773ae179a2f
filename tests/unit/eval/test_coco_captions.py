"""The loader of MSCOCO captions on files with the published fields, and Karpathy's split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qm_vllm_eval.datasets import DataSetError
from qm_vllm_eval.datasets.coco_captions import NO_CAPTION, open_coco
from qm_vllm_eval.datasets.fixture_media import write_image


def write_json(file: Path, value: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value), encoding="utf-8")
    return file


def captions(root: Path, name: str = "captions_val2017.json", **more: Any) -> Path:
    """Two images, of which the second is described first."""
    for image_id in (139, 285):
        write_image(root / "val2017" / f"{image_id:012d}.jpg", image_id)
    held = {
        "info": {"year": 2017},
        "licenses": [{"id": 1}],
        "images": [
            {"id": 139, "file_name": "000000000139.jpg", "width": 640, "height": 426, "license": 1},
            {"id": 285, "file_name": "000000000285.jpg", "width": 586, "height": 640, "license": 1},
        ],
        "annotations": [
            {"id": 3, "image_id": 285, "caption": "A bear sits. "},
            {"id": 1, "image_id": 139, "caption": "A room with a lamp."},
            {"id": 2, "image_id": 139, "caption": "a lit room\n"},
        ],
        **more,
    }
    write_json(root / "annotations" / name, held)
    return root


def test_images_with_all_their_captions(tmp_path: Path) -> None:
    data = open_coco(captions(tmp_path))
    first, second = data
    assert first.references == ("A room with a lamp.", "a lit room")
    assert second.references == ("A bear sits.",)
    assert first.image == tmp_path / "val2017" / "000000000139.jpg"
    assert (first.row_id, first.image_id, first.size) == ("coco-000000000139", 139, (640, 426))
    assert first.usable
    assert list(data) == [first, second]
    file = tmp_path / "annotations" / "captions_val2017.json"
    assert list(open_coco(file)) == [first, second]
    assert [row.image for row in open_coco(file, images=tmp_path / "val2017")] == \
        [first.image, second.image]  # fmt: skip


def test_splits_and_years(tmp_path: Path) -> None:
    captions(tmp_path)
    images = [{"id": 9, "file_name": "COCO_train2014_000000000009.jpg"}]
    notes = [{"id": 1, "image_id": 9, "caption": "food"}]
    write_image(tmp_path / "images/train2014/COCO_train2014_000000000009.jpg", 0)
    captions(tmp_path, "captions_train2014.json", images=images, annotations=notes)
    (row,) = open_coco(tmp_path, "train")
    assert row.usable
    assert row.image.parent == tmp_path / "images" / "train2014"
    assert row.size == (0, 0)
    with pytest.raises(DataSetError, match=r"has no annotations .*dataset_coco\.json.*CC-BY-4\.0"):
        open_coco(tmp_path, "test")


def test_what_is_wrong_with_an_image_is_its_reason(tmp_path: Path) -> None:
    images = [
        {"id": 139, "file_name": "000000000139.jpg"},
        {"id": 1, "file_name": "000000000001.jpg"},
        {"id": 285, "file_name": "000000000285.jpg"},
        {"id": 2, "file_name": "../x.jpg"},
        {"id": 4, "file_name": f"{'x' * 300}.jpg"},
        {"file_name": "000000000003.jpg"},
        "no object",
        {"id": 139, "file_name": "000000000139.jpg"},
    ]
    notes = [{"image_id": 139, "caption": "a"}, {"image_id": 1, "caption": "b"},
             {"image_id": 5, "caption": "c"}, {"image_id": 285, "caption": " "}, 7]  # fmt: skip
    data = open_coco(captions(tmp_path, images=images, annotations=notes))
    rows = list(data)
    assert [row.usable for row in rows] == [True] + [False] * 7
    name = "captions_val2017.json"
    assert rows[1].reason == f"there is no image {tmp_path}/val2017/000000000001.jpg"
    assert rows[2].reason == f"{name} images[2]: {NO_CAPTION}"
    assert rows[3].reason == f"{name} images[3] has no file name"
    assert rows[4].reason == f"{name} images[4] has no file name"
    assert rows[5].reason == f"{name} images[5] has no 'id'"
    assert rows[7].reason == f"coco-000000000139 is in {name} more than once"
    assert len({row.row_id for row in rows}) == len(rows)
    assert data.skipped == {"caption of no image": 2, "empty caption": 1}


def test_karpathys_split(tmp_path: Path) -> None:
    def entry(cocoid: int, split: str, inner: str) -> dict[str, Any]:
        name = f"COCO_{inner}_{cocoid:012d}.jpg"
        write_image(tmp_path / inner / name, cocoid)
        sentences = [{"raw": f"{split} one", "tokens": []}, {"raw": f"{split} two"}]
        return {"filepath": inner, "filename": name, "cocoid": cocoid, "split": split,
                "imgid": 0, "sentids": [1, 2], "sentences": sentences}  # fmt: skip

    held = [entry(5, "test", "val2014"), entry(4, "restval", "val2014")]
    held += [entry(3, "train", "train2014"), entry(2, "val", "val2014"), {"split": "val"}]
    file = write_json(tmp_path / "dataset_coco.json", {"images": held, "dataset": "coco"})
    train = list(open_coco(file, "train"))
    assert [row.references[0] for row in train] == ["restval one", "train one"]
    assert train[0].image == tmp_path / "val2014/COCO_val2014_000000000004.jpg"
    assert all(row.usable for row in train)
    (test,) = open_coco(tmp_path, "test")
    assert test.references == ("test one", "test two")
    good, bad = open_coco(tmp_path, "validation")
    assert (good.image_id, bad.reason) == (2, "dataset_coco.json images[4] has no 'cocoid'")


def test_files_of_another_form(tmp_path: Path) -> None:
    with pytest.raises(DataSetError, match=r"get MSCOCO captions from cocodataset\.org"):
        open_coco(tmp_path / "nothing")
    for held, match in (
        ([], "holds a list; it should be an object"),
        ({"annotations": []}, "has no list 'images'"),
        ({"images": []}, "has no list 'annotations'"),
    ):
        with pytest.raises(DataSetError, match=match):
            open_coco(write_json(tmp_path / "captions_val2017.json", held))
    (tmp_path / "captions_val2017.json").write_text("{")
    with pytest.raises(DataSetError, match=r"captions_val2017\.json is no JSON"):
        open_coco(tmp_path)
