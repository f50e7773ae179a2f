"""The set of spliced real videos, with drawn videos and an encoder that sees one colour."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from qm_vllm_eval.datasets import DataSetError, ego4d_real
from qm_vllm_eval.datasets.ego4d_nlq import FEATURES_PER_SECOND, Ego4dNlq
from qm_vllm_eval.datasets.ego4d_real import (
    SOURCES,
    cached_features,
    encode_video,
    found_sources,
    frames,
    write_spliced,
)

FRONT = {source.name: source.query for source in SOURCES if source.query}
BACK = [source.name for source in SOURCES if not source.query]


class ColourEncoder:
    """A class token (the frame's mean colour), ``registers`` special ones, and two patches."""

    def __init__(self, registers: int = 0, class_tokens: int = 1) -> None:
        self.name = "colour"
        self.marks = [True] * (class_tokens + class_tokens * registers) + [False, False]
        self.seen = 0

    def stream(self, images: Iterator[np.ndarray], window: int) -> Iterator[Any]:
        held = list(images)
        self.seen += len(held)
        for low in range(0, len(held), window):
            colours = [image.mean((0, 1)) for image in held[low : low + window]]
            states = [
                torch.tensor(colour if index == 0 else [-1.0, -1.0, -1.0])
                for colour in colours
                for index in range(len(self.marks))
            ]
            yield SimpleNamespace(
                states=torch.stack(states).half(), special=torch.tensor(self.marks * len(colours))
            )


def draw(file: Path, count: int, rate: float) -> Path:
    """A video whose frame i shows i in black and white: eight bars, one for each bit."""
    cv2 = pytest.importorskip("cv2")
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"MJPG"), rate, (128, 32))
    for index in range(count):
        bars = [255 * (index >> bit & 1) for bit in range(8)]
        writer.write(np.tile(np.repeat(bars, 16).astype(np.uint8)[:, None], (32, 1, 3)))
    writer.release()
    return file


def shown(file: Path) -> list[int]:
    return [
        sum(1 << bit for bit in range(8) if frame[:, 16 * bit + 4 : 16 * bit + 12].mean() > 127)
        for frame in frames(file)
    ]


def test_every_sixteenth_frame_of_thirty_a_second(tmp_path: Path) -> None:
    assert shown(draw(tmp_path / "x.avi", 100, 30)) == [0, 16, 32, 48, 64, 80, 96]


def test_other_rates_keep_the_time(tmp_path: Path) -> None:
    # Rows are 8 / 15 s apart, 13.3 frames at 25 a second.
    assert shown(draw(tmp_path / "x.avi", 60, 25)) == [0, 14, 27, 40, 54]
    assert shown(draw(tmp_path / "y.avi", 4, 1)) == [0, 1, 2, 2, 3, 3]


def test_frames_are_rgb(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    file = tmp_path / "x.avi"
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"MJPG"), 30, (32, 32))
    blue, green, red = 20, 60, 200
    writer.write(np.full((32, 32, 3), (blue, green, red), dtype=np.uint8))
    writer.release()
    (frame,) = frames(file)
    assert (frame.shape, frame.dtype) == ((32, 32, 3), np.uint8)
    assert frame.mean((0, 1)) == pytest.approx([red, green, blue], abs=6)


def test_files_that_are_no_video_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    (tmp_path / "x.mp4").write_bytes(b"no video")
    for name in ("x.mp4", "missing.mp4"):
        with pytest.raises(DataSetError, match=rf"{name} cannot be decoded as a video"):
            list(frames(tmp_path / name))


def test_a_missing_decoder_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(DataSetError, match="pip install opencv-python-headless"):
        next(frames(tmp_path / "x.mp4"))


@pytest.mark.parametrize("registers", [0, 4])
def test_a_feature_is_the_class_token_of_its_frame(registers: int, tmp_path: Path) -> None:
    features = encode_video(draw(tmp_path / "x.avi", 100, 30), ColourEncoder(registers))
    assert features.dtype == torch.float32
    white = torch.tensor([number.bit_count() / 8 for number in range(0, 100, 16)])
    expected = 255 * white[:, None].expand(-1, 3)
    torch.testing.assert_close(features, expected, atol=4, rtol=0)


def test_an_encoder_without_class_tokens_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataSetError, match="colour gives no class token"):
        encode_video(draw(tmp_path / "x.avi", 20, 30), ColourEncoder(class_tokens=0))


def test_videos_come_from_the_cache_folder_and_else_from_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packaged = tmp_path / "packaged.mp4"
    packaged.write_bytes(b"x")
    monkeypatch.setenv("QM_VLLM_CACHE", str(tmp_path))
    monkeypatch.setattr(ego4d_real, "in_package", lambda *parts: None)
    assert found_sources() == {}
    own = tmp_path / "videos" / "bikes.mp4"
    own.parent.mkdir()
    own.write_bytes(b"x")
    assert found_sources() == {"bikes": own}
    monkeypatch.setattr(ego4d_real, "in_package", lambda *parts: packaged)
    found = found_sources()
    assert found.pop("bikes") == own
    assert set(found) == {"bunny", "carphone", "demo"}
    assert set(found.values()) == {packaged}


def test_videos_are_encoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QM_VLLM_CACHE", str(tmp_path))
    video = draw(tmp_path / "x.avi", 40, 30)
    monkeypatch.setattr(ego4d_real, "found_sources", lambda: {"bikes": video})
    encoder = ColourEncoder()
    first = cached_features(encoder)
    assert (first["bikes"].shape, encoder.seen) == ((3, 3), 3)
    again = cached_features(encoder)
    assert torch.equal(first["bikes"], again["bikes"])
    assert encoder.seen == 3
    stored = tmp_path / "videos" / "colour" / "bikes.pt"
    assert [file.name for file in stored.parent.iterdir()] == ["bikes.pt"]
    stored.write_bytes(b"broken")
    with pytest.raises(DataSetError, match=r"bikes\.pt cannot be read .*; delete it"):
        cached_features(encoder)


def stand_ins() -> dict[str, Tensor]:
    """Features [T, 2] that name their video and their row in it."""
    lengths = {**dict.fromkeys(FRONT, 12), **dict.fromkeys(BACK, 90)}
    return {
        name: torch.stack([torch.full((size,), float(number)), torch.arange(float(size))], 1)
        for number, (name, size) in enumerate(lengths.items())
    }


def test_every_foreground_is_shown_once_where_its_window_is(tmp_path: Path) -> None:
    features = stand_ins()
    number = {name: float(value[0, 0]) for name, value in features.items()}
    file = write_spliced(tmp_path, features, videos=6, rows=200)
    rows = list(Ego4dNlq(file, tmp_path / "features"))
    assert [row.reason for row in rows] == [""] * 18
    assert len({row.clip_uid for row in rows}) == 6
    for row in rows:
        name = next(name for name, query in FRONT.items() if query == row.query)
        shown_rows = (row.features[:, 0] == number[name]).nonzero().flatten().tolist()
        start, end = (round(time * FEATURES_PER_SECOND) for time in row.window)
        assert shown_rows == list(range(start, end))
        assert 6 <= end - start <= 12
        assert len(row.features) == 200
        part = row.features[start:end, 1]
        assert torch.equal(part, part[0] + torch.arange(float(end - start)))
        others = {number[other] for other in FRONT} & set(row.features[:, 0].tolist())
        assert len(others) == 3
    places = [row.window[0] for row in rows]
    assert len(set(places)) > 12


def test_equal_seeds_give_equal_sets(tmp_path: Path) -> None:
    def files(folder: str, seed: int) -> dict[str, bytes]:
        write_spliced(tmp_path / folder, stand_ins(), videos=2, rows=100, seed=seed)
        found = (tmp_path / folder).rglob("*.*")
        return {file.name: file.read_bytes() for file in found if file.is_file()}

    assert files("a", 0) == files("b", 0)
    assert set(files("c", 1)).intersection(files("a", 0)) == {"nlq_val.json"}


def test_the_shortest_clips(tmp_path: Path) -> None:
    tiny = {"bikes": torch.ones(1, 2), "street": torch.zeros(1, 2)}
    file = write_spliced(tmp_path, tiny, videos=3, rows=2)
    assert [row.window for row in Ego4dNlq(file, tmp_path / "features")] == [
        (1 / FEATURES_PER_SECOND, 2 / FEATURES_PER_SECOND)
    ] * 3


def test_too_few_videos_and_too_short_clips_are_refused(tmp_path: Path) -> None:
    features = stand_ins()
    with pytest.raises(DataSetError, match="found none; run `pip install"):
        write_spliced(tmp_path, {})
    for names in (FRONT, BACK):
        with pytest.raises(DataSetError, match="need a background and a foreground video"):
            write_spliced(tmp_path, {name: features[name] for name in names})
    with pytest.raises(DataSetError, match="71 rows are too few for bikes, bunny, carphone"):
        write_spliced(tmp_path, features, rows=71)
    assert not list(tmp_path.iterdir())


def test_sources_are_named_once_and_asked_for_by_different_queries() -> None:
    assert len({source.name for source in SOURCES}) == len(SOURCES) == 5
    assert len(set(FRONT.values())) == len(FRONT) == 3
