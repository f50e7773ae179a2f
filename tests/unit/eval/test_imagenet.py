"""ImageNet's loader on folders laid out as published, with images of random pixels."""

from __future__ import annotations

from pathlib import Path

import pytest

from qm_vllm_eval.datasets import DataSetError
from qm_vllm_eval.datasets.fixture_media import write_image
from qm_vllm_eval.datasets.imagenet import (
    GROUND_TRUTH,
    GROUND_TRUTH_2015,
    MAPPING,
    NUMBERS,
    SOLUTION,
    open_imagenet,
)

TENCH, FOX, DOG = "n01440764", "n02119789", "n02085620"
SETTER = "n02100735"


def write_lines(file: Path, *lines: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return file


def train_folder(root: Path) -> Path:
    for seed, (wnid, number) in enumerate(((FOX, 7), (TENCH, 10), (TENCH, 2))):
        write_image(root / "train" / wnid / f"{wnid}_{number}.JPEG", seed)
    return root


def flat_folder(root: Path, numbers: tuple[int, ...] = (1, 2, 3)) -> Path:
    for number in numbers:
        write_image(root / "val" / f"ILSVRC2012_val_{number:08d}.JPEG", number)
    return root


def test_class_folders_in_order_with_labels_by_sorted_ids(tmp_path: Path) -> None:
    data = open_imagenet(train_folder(tmp_path), "train")
    rows = list(data)
    names = [f"{TENCH}/{TENCH}_10", f"{TENCH}/{TENCH}_2", f"{FOX}/{FOX}_7"]
    assert [row.row_id for row in rows] == names
    assert [row.label for row in rows] == [0, 0, 1]
    assert all(row.usable and row.image.is_file() for row in rows)
    assert data.classes == (TENCH, FOX)
    assert list(data) == rows
    assert list(open_imagenet(tmp_path / "train", "train")) == rows


def test_the_mapping_fixes_labels_and_tells_words(tmp_path: Path) -> None:
    write_lines(tmp_path / MAPPING, f"{TENCH} tench, Tinca tinca", f"{DOG} Chihuahua", f"{FOX} fox")
    rows = list(open_imagenet(train_folder(tmp_path), "train"))
    assert [row.label for row in rows] == [0, 0, 2]
    assert [row.words for row in rows] == ["tench, Tinca tinca"] * 2 + ["fox"]


def test_a_class_that_the_mapping_lacks_is_a_reason(tmp_path: Path) -> None:
    write_lines(tmp_path / MAPPING, f"{TENCH} tench")
    rows = list(open_imagenet(train_folder(tmp_path), "train"))
    assert [row.usable for row in rows] == [True, True, False]
    assert f"has the class '{FOX}', which is none of the 1 known" in rows[2].reason
    assert rows[2].label == -1


def test_flat_images_with_kaggles_solution(tmp_path: Path) -> None:
    root = flat_folder(tmp_path / "ILSVRC/Data/CLS-LOC", (1, 2, 4)) and tmp_path
    write_lines(
        root / SOLUTION, "ImageId,PredictionString",
        f"ILSVRC2012_val_00000003,{TENCH} 1 2 3 4 ",
        f"ILSVRC2012_val_00000001,{FOX} 255 142 454 329 {FOX} 44 21 322 295 ",
        f"ILSVRC2012_val_00000002,{TENCH} 1 2 3 4 ",
    )  # fmt: skip
    rows = list(open_imagenet(root, "validation"))
    assert [row.row_id[-1] for row in rows] == ["1", "2", "3", "4"]
    assert [(row.wnid, row.label) for row in rows[:3]] == [(FOX, 1), (TENCH, 0), (TENCH, 0)]
    assert [row.usable for row in rows] == [True, True, False, False]
    assert rows[2].reason.startswith("there is no image")
    assert rows[3].reason == "the answers do not name the image ILSVRC2012_val_00000004.JPEG"


def test_the_ground_truths_numbers_are_those_of_the_kit(tmp_path: Path) -> None:
    """The kit's numbers are not in the order of the WordNet ids: kit fox is 1, setter is 2."""
    root = flat_folder(tmp_path)
    write_lines(root / "ILSVRC2012_devkit_t12/data" / GROUND_TRUTH, "2", "1", "7")
    write_lines(root / MAPPING, f"{SETTER} English setter", f"{FOX} kit fox, Vulpes macrotis")
    with pytest.raises(DataSetError, match=r"need map_clsloc\.txt.*LOC_synset_mapping.* order"):
        open_imagenet(root)
    numbers = write_lines(
        root / "devkit/data" / NUMBERS, f"{FOX} 1 kit_fox", f"{SETTER} 2 English_setter"
    )
    rows = list(open_imagenet(root))
    assert [(row.wnid, row.label) for row in rows[:2]] == [(SETTER, 0), (FOX, 1)]
    assert rows[1].words == "kit fox, Vulpes macrotis"
    assert "has the class 'number 7'" in rows[2].reason
    old = root / "ILSVRC2012_devkit_t12/data" / GROUND_TRUTH
    old.rename(root / "devkit/data" / GROUND_TRUTH_2015)  # as in Kaggle's layout
    assert list(open_imagenet(root)) == rows
    (root / MAPPING).unlink()
    again = list(open_imagenet(root, synsets=numbers))
    assert [(row.label, row.words) for row in again[:2]] == [(0, "English setter"), (1, "kit fox")]
    with pytest.raises(DataSetError, match="not 'n02119789 1 kit_fox'"):
        open_imagenet(root, synsets=write_lines(root / "m.txt", f"{TENCH} tench, Tinca tinca"))


def test_an_empty_image_is_a_reason_and_other_files_are_counted(tmp_path: Path) -> None:
    root = train_folder(tmp_path)
    (root / "train" / FOX / f"{FOX}_8.JPEG").write_bytes(b"")
    (root / "train" / FOX / "notes.txt").write_text("x")
    data = open_imagenet(root, "train")
    assert [row.usable for row in data] == [True, True, True, False]
    assert list(data)[3].reason.endswith("is empty")
    assert data.skipped == {"no JPEG file": 1}


def test_without_data_the_error_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataSetError, match=r"image-net\.org.*non-commercial research"):
        open_imagenet(tmp_path / "nothing")
    with pytest.raises(DataSetError, match=r"neither class folders.*image-net\.org"):
        open_imagenet(tmp_path)
    with pytest.raises(DataSetError, match=r"LOC_val_solution\.csv or ILSVRC2012_validation"):
        open_imagenet(flat_folder(tmp_path))
    with pytest.raises(DataSetError, match="has no split 'test'; there are train, validation"):
        open_imagenet(tmp_path, "test")
    with pytest.raises(DataSetError, match="which 'train' needs"):
        open_imagenet(tmp_path / "val", "train")
    with pytest.raises(DataSetError, match="does not begin with ImageId"):
        open_imagenet(tmp_path, answers=write_lines(tmp_path / "a.csv", "x,y"))
    with pytest.raises(DataSetError, match="begins with no class id"):
        open_imagenet(tmp_path, synsets=write_lines(tmp_path / "s.txt", "tench"))
