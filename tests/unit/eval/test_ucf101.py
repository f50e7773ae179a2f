"""UCF101's loader on the published lists' format, with small videos of random pixels."""

from __future__ import annotations

from pathlib import Path

import pytest

from qm_vllm_eval.datasets import DataSetError
from qm_vllm_eval.datasets.fixtures import write_fixture
from qm_vllm_eval.datasets.ucf101 import FOLDS, open_ucf101

EYES, HANDS = "ApplyEyeMakeup", "HandstandPushups"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Lists of three folds; files with a byte in them instead of videos."""
    write_fixture("ucf101", tmp_path)
    for action, spelled in ((EYES, EYES), (HANDS, "HandStandPushups")):
        for group in (1, 2, 3):
            file = tmp_path / "UCF-101" / action / f"v_{spelled}_g{group:02d}_c01.avi"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"x")
    return tmp_path


def test_rows_in_the_order_of_the_list(root: Path) -> None:
    data = open_ucf101(root, "test")
    first, second = data
    assert (first.row_id, first.action, first.label) == (f"v_{EYES}_g01_c01", EYES, 0)
    assert (first.group, first.clip) == (1, 1)
    assert second.video == root / "UCF-101" / HANDS / "v_HandStandPushups_g01_c01.avi"
    assert (second.action, second.label, second.reason) == (HANDS, 1, "")
    assert data.classes == (EYES, HANDS)
    assert list(data) == [first, second]


def test_folds_divide_groups(root: Path) -> None:
    for fold in FOLDS:
        train = {(row.action, row.group) for row in open_ucf101(root, "train", fold)}
        test = {(row.action, row.group) for row in open_ucf101(root, "test", fold)}
        assert not train & test
        assert test == {(EYES, fold), (HANDS, fold)}
        assert len(train | test) == 6
    with pytest.raises(DataSetError, match="no fold 4; there are 1, 2, 3"):
        open_ucf101(root, "test", 4)


def test_flat_videos_and_lists_elsewhere(root: Path) -> None:
    folder = root / "flat"
    folder.mkdir()
    for file in (root / "UCF-101").rglob("*.avi"):
        file.rename(folder / file.name)
    rows = list(open_ucf101(folder, lists=root / "ucfTrainTestlist"))
    assert all(row.usable and row.video.parent == folder for row in rows)
    assert list(open_ucf101(folder)) == rows  # beside the videos


def test_bad_lines_and_missing_videos_have_a_reason(root: Path) -> None:
    (root / "UCF-101" / EYES / f"v_{EYES}_g02_c01.avi").unlink()
    (root / "UCF-101" / EYES / f"v_{EYES}_g03_c01.avi").write_bytes(b"")
    file = root / "ucfTrainTestlist" / "trainlist01.txt"
    lines = file.read_text().split("\n")[:3]
    lines += ["Juggling/v_Juggling_g01_c01.avi 3", "what"]
    lines += [f"{HANDS}/v_HandStandPushups_g03_c01.avi 1", f"{EYES}/v_{EYES}_g02_c01.avi 1"]
    lines.append(f"{EYES}/v_{'x' * 300}_g01_c01.avi")
    file.write_text("\r\n".join(lines))
    gone, empty, good, other, odd, number, again, long = open_ucf101(root, "train")
    assert gone.reason == f"there is no video {root}/UCF-101/{EYES}/v_{EYES}_g02_c01.avi"
    assert empty.reason.endswith("is empty")
    assert good.usable
    assert other.reason == "trainlist01.txt line 4: Juggling is no action of classInd.txt"
    assert odd.reason.startswith("trainlist01.txt line 5 has 'what'")
    assert number.reason == f"trainlist01.txt line 6 has the number 1, but {HANDS} has 2"
    assert again.row_id == f"v_{EYES}_g02_c01#2"
    assert not again.usable
    assert long.reason.startswith("trainlist01.txt line 8 has ")


def test_without_data_the_error_says_where_to_get_it(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataSetError, match=r"get UCF101 from www\.crcv\.ucf\.edu.*see its page"):
        open_ucf101(tmp_path / "nothing")
    with pytest.raises(DataSetError, match="no split 'validation'; there are train, test"):
        open_ucf101(root, "validation")
    (root / "ucfTrainTestlist" / "classInd.txt").write_text("1 A\n3 B\n")
    with pytest.raises(DataSetError, match=r"classInd\.txt does not number its actions 1 to 2"):
        open_ucf101(root)
    (root / "ucfTrainTestlist" / "testlist02.txt").unlink()
    with pytest.raises(DataSetError, match=r"no list of videos .*testlist02\.txt"):
        open_ucf101(root, "test", 2)
