"""Features of whole videos: the rows of a clip, and files that are not what they should be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qm_vllm_eval.datasets.ego4d_nlq import EMPTY_QUERY
from qm_vllm_eval.datasets.video_features import UnfitError, cut_features
from tests.unit.eval.nlq_files import numbered, sound_features, write_nlq


@pytest.fixture
def features(tmp_path: Path) -> Path:
    return sound_features(tmp_path)


def test_features_are_the_clips_rows_of_its_video(tmp_path: Path) -> None:
    first, _, second, third = write_nlq(tmp_path)
    assert torch.equal(first.features, numbered(60))
    assert torch.equal(second.features, numbered(120)[60:])
    assert second.features.untyped_storage().nbytes() == second.features.nbytes
    assert torch.equal(third.features, numbered(60))


@pytest.mark.parametrize("width", [1, 768, 2304])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_width_and_type_become_float32(
    width: int, dtype: torch.dtype, tmp_path: Path, features: Path
) -> None:
    for name, rows in (("v0", 120), ("v1", 60)):
        torch.save(torch.ones(rows, width, dtype=dtype), features / f"{name}.pt")
    for row in write_nlq(tmp_path):
        assert row.features.dtype == torch.float32
        assert row.features.shape == (60, width)


def test_gradients_of_the_file_do_not_come_along(tmp_path: Path, features: Path) -> None:
    torch.save(torch.nn.Parameter(numbered(120)), features / "v0.pt")
    assert not next(iter(write_nlq(tmp_path))).features.requires_grad


def test_another_rate(tmp_path: Path) -> None:
    rows = list(write_nlq(tmp_path, features_per_second=0.9375))
    assert [len(row.features) for row in rows] == [30, 30, 30, 30]
    with pytest.raises(ValueError, match="0 features a second"):
        write_nlq(tmp_path, features_per_second=0)


def broken(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:300])


class Trap:
    """Runs code when it is unpickled without care."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("executed"),))


BAD_FEATURES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (Path.unlink, "there are no features v0.pt in "),
    "a folder": (lambda f: (f.unlink(), f.mkdir()), "there are no features v0.pt in "),
    "empty": (lambda f: f.write_bytes(b""), "v0.pt cannot be read: EOFError"),
    "truncated": (broken, "v0.pt cannot be read: "),
    "text": (lambda f: f.write_text("hello"), "v0.pt cannot be read: "),
    "an object": (lambda f: torch.save(Trap(), f), "v0.pt cannot be read: UnpicklingError"),
    "a dict": (lambda f: torch.save({"x": numbered(9)}, f), "v0.pt holds a dict, not a tensor"),
    "three axes": (lambda f: torch.save(torch.ones(1, 9, 3), f), "(1, 9, 3), not floats [T, D]"),
    "no rows": (lambda f: torch.save(torch.ones(0, 3), f), "(0, 3), not floats [T, D]"),
    "integers": (lambda f: torch.save(numbered(120).int(), f), "v0.pt holds torch.int32 (120, 3)"),
    "sparse": (lambda f: torch.save(numbered(120).to_sparse(), f), "not plain rows [T, D]"),
    "no memory": (lambda f: torch.save(numbered(120).to("meta"), f), "on meta, not plain rows"),
}


@pytest.mark.parametrize("case", BAD_FEATURES)
def test_bad_features_are_the_reason_and_the_rest_goes_on(
    case: str, tmp_path: Path, features: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spoil, reason = BAD_FEATURES[case]
    data = write_nlq(tmp_path)
    spoil(features / "v0.pt")
    *bad, good = data
    assert len(bad) == 3
    for row in bad:
        assert reason in row.reason
        assert row.features is None
        assert row.window
    assert good.usable
    assert data.skipped == {EMPTY_QUERY: 2}
    assert not Path("executed").exists()


def test_another_width_is_a_reason(tmp_path: Path, features: Path) -> None:
    torch.save(numbered(60, 4), features / "v1.pt")
    reasons = [row.reason for row in write_nlq(tmp_path)]
    assert reasons == ["", "", "", "v1.pt has features of width 4, not 3"]
    reasons = [row.reason for row in write_nlq(tmp_path, width=4)]
    assert reasons == ["v0.pt has features of width 3, not 4"] * 3 + [""]


def test_only_clips_with_bad_rows_are_unusable(tmp_path: Path, features: Path) -> None:
    held = numbered(120)
    held[70, 1] = torch.nan
    torch.save(held, features / "v0.pt")
    reasons = [row.reason for row in write_nlq(tmp_path)]
    assert reasons == ["", "", "v0.pt holds NaN or infinity in rows 60 to 120", ""]
    torch.save(numbered(120).double() * 1e300, features / "v0.pt")
    assert "NaN or infinity" in next(iter(write_nlq(tmp_path))).reason


def test_a_few_rows_may_be_missing_at_the_end(tmp_path: Path, features: Path) -> None:
    torch.save(numbered(116), features / "v0.pt")
    rows = list(write_nlq(tmp_path))
    assert [len(row.features) for row in rows] == [60, 60, 56, 60]
    torch.save(numbered(115), features / "v0.pt")
    reasons = [row.reason for row in write_nlq(tmp_path)]
    assert reasons == ["", "", "v0.pt has 115 rows, the clip needs 60 to 120", ""]


@given(st.floats(0, 60), st.floats(0.01, 60))
def test_cut_rows_are_those_whose_frames_the_clip_touches(start: float, length: float) -> None:
    """Row r covers the seconds [r, r + 1) * 16 / 30."""
    end = start + length
    got = cut_features(numbered(240), (start, end), 30 / 16, "v").int()[:, 0].tolist()
    low, high = start + 1e-5, end - 1e-5
    touched = [r for r in range(240) if r * 16 / 30 < high and (r + 1) * 16 / 30 > low]
    assert set(touched) <= set(got)
    assert len(got) <= len(touched) + 1
    assert got == list(range(got[0], got[-1] + 1))


def test_a_clip_after_the_features_end_is_refused() -> None:
    with pytest.raises(UnfitError, match=r"v\.pt has 10 rows, the clip needs 10 to 12"):
        cut_features(numbered(10), (10 / 1.875, 12 / 1.875), 1.875, "v")
