"""Every published set by its name: fixtures in its format, errors without it, the list's facts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from qm_vllm_eval.datasets import DataSetError
from qm_vllm_eval.datasets.catalogue import OPENERS, open_published
from qm_vllm_eval.datasets.fixture_media import write_video
from qm_vllm_eval.datasets.fixtures import VIDEO_SETS, write_fixture
from qm_vllm_eval.datasets.published import PUBLISHED

SPLITS = [(name, split) for name, of in PUBLISHED.items() for split in of.splits]
DOCS = Path(__file__).parents[3] / "docs" / "datasets.md"


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("published")
    lacking = {name: write_fixture(name, root / name).lacking for name in PUBLISHED}
    assert not any(text for name, text in lacking.items() if name not in VIDEO_SETS)
    return root


def test_every_set_has_an_opener_and_facts() -> None:
    assert list(OPENERS) == list(PUBLISHED)
    for of in PUBLISHED.values():
        assert of.name
        assert of.licence
        assert "." in of.address.split("/")[0]
        assert set(of.splits) <= {"train", "validation", "test"}


@pytest.mark.parametrize(("name", "split"), SPLITS)
def test_fixtures_are_read_by_their_loaders(name: str, split: str, sets: Path) -> None:
    data = open_published(name, sets / name, split)
    rows = list(data)
    assert 2 <= len(rows) <= 4
    assert len({row.row_id for row in rows}) == len(rows)
    if name in VIDEO_SETS:
        pytest.importorskip("cv2")
    assert [row.reason for row in rows] == [""] * len(rows)
    assert [row.row_id for row in data] == [row.row_id for row in rows]


def test_fixtures_are_small_and_equal_each_time(sets: Path, tmp_path: Path) -> None:
    files = [file for file in sets.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 300_000
    for name in ("tvqa", "qasper", "coco_captions", "wikitext"):
        write_fixture(name, tmp_path / name)
        for file in (tmp_path / name).rglob("*"):
            if file.is_file():
                same = sets / file.relative_to(tmp_path)
                assert file.read_bytes() == same.read_bytes()


@pytest.mark.parametrize("ending", ["avi", "webm"])
def test_videos_of_fixtures_can_be_decoded(ending: str, tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    file = tmp_path / f"a.{ending}"
    lacking = write_video(file, 3)
    if lacking:
        assert lacking == f"no videos: this OpenCV cannot write .{ending}"
        assert not file.exists()
        return
    capture = cv2.VideoCapture(str(file))
    frames = []
    while (read := capture.read())[0]:
        frames.append(read[1])
    assert [frame.shape for frame in frames] == [(48, 64, 3)] * 6
    assert abs(frames[0].astype(int) - frames[-1].astype(int)).mean() > 10  # they differ


def test_without_opencv_there_are_no_placeholders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    for name in VIDEO_SETS:
        written = write_fixture(name, tmp_path / name)
        assert "pip install opencv-python-headless" in written.lacking
        rows = list(open_published(name, written.folder, "test"))
        assert len(rows) == 2
        assert all(row.reason.startswith("there is no video") for row in rows)
        assert not [*tmp_path.rglob("*.avi"), *tmp_path.rglob("*.webm")]


@pytest.mark.parametrize("name", PUBLISHED)
def test_without_data_the_error_names_address_and_licence(name: str, tmp_path: Path) -> None:
    of = PUBLISHED[name]
    for source in (None, "", tmp_path / "nothing"):
        with pytest.raises(DataSetError) as caught:
            open_published(name, source, of.splits[-1])
        assert f"get {of.name} from {of.address}" in str(caught.value)
        assert of.licence in str(caught.value)


def test_names_splits_and_options(sets: Path) -> None:
    with pytest.raises(DataSetError, match="no data set 'imagenet2'; there are booksum, "):
        open_published("imagenet2", sets, "train")
    with pytest.raises(DataSetError, match="no data set 'x'"):
        write_fixture("x", sets)
    with pytest.raises(DataSetError, match="Ego4D NLQ has no split 'test'"):
        open_published("ego4d_nlq", sets / "ego4d_nlq", "test")
    rows = list(open_published("ucf101", sets / "ucf101", "test", fold=3))
    assert [row.row_id[-7:] for row in rows] == ["g03_c01", "g03_c01"]
    frames = sets / "tvqa" / "frames_hq"
    assert all(row.usable for row in open_published("tvqa", sets / "tvqa", "train", frames=frames))


def test_the_page_names_every_set() -> None:
    page = DOCS.read_text(encoding="utf-8")
    for name, of in PUBLISHED.items():
        assert f"`{name}`" in page
        assert of.address in page
