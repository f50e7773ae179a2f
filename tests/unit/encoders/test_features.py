"""Files of features: the same rows from every kind, streamed; bad files are named."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from qm_vllm.encoders import EncoderError, load_encoder
from qm_vllm.encoders.base import join

ROWS = torch.randn(50, 12, generator=torch.Generator().manual_seed(3))


def write(folder, kind, rows=ROWS, stem="talk"):
    path = folder / f"{stem}{kind}"
    if kind == ".npy":
        np.save(path, rows.numpy())
    elif kind == ".pt":
        torch.save(rows, path)
    else:
        save_file({"rows": rows.contiguous()}, path)
    return path


KINDS = (".pt", ".npy", ".safetensors")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("window", [None, 1, 7, 25, 50, 90])
def test_rows_come_once_in_order(tmp_path, kind, window):
    encoder = load_encoder(str(write(tmp_path, kind)))
    assert (encoder.name, encoder.hidden_size, encoder.num_layers) == (f"talk{kind}", 12, 0)
    windows = list(encoder.stream(None, window=window))
    assert len(windows) == -(-50 // (window or 50))
    assert [w.start for w in windows] == list(range(0, 50, window or 50))
    joined = join(windows)
    assert torch.equal(joined.states, ROWS)
    assert len(joined.layers) == 1
    assert joined.token_ids is None
    assert joined.special.tolist() == [False] * 50


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("saved", [torch.float16, torch.float64])
def test_type_of_the_states(tmp_path, kind, saved):
    path = write(tmp_path, kind, ROWS.to(saved))
    assert load_encoder(str(path)).encode("talk").states.dtype == saved
    states = load_encoder(str(path), dtype=torch.float32).encode("talk").states
    assert torch.equal(states, ROWS.to(saved).float())


@pytest.mark.parametrize("kind", [".pt", ".safetensors"])
def test_bfloat16(tmp_path, kind):
    path = write(tmp_path, kind, ROWS.bfloat16())
    assert torch.equal(load_encoder(str(path)).encode(None).states, ROWS.bfloat16())


def test_folder_with_one_file_for_each_id(tmp_path):
    for at, kind in enumerate(KINDS):
        write(tmp_path, kind, ROWS[at : at + 10], stem=f"talk-{at}")
    (tmp_path / "notes.txt").write_text("not features")
    encoder = load_encoder(str(tmp_path))
    assert encoder.ids == ("talk-0", "talk-1", "talk-2")
    for at, name in enumerate(encoder.ids):
        assert torch.equal(encoder.encode(name).states, ROWS[at : at + 10])
    for source in ("talk-3", None, 5):
        with pytest.raises(EncoderError, match=f"no features with the id {source!r}; it has 3"):
            encoder.stream(source)


def test_windows_are_copies_not_views_of_the_file(tmp_path):
    encoder = load_encoder(str(write(tmp_path, ".npy")))
    encoder.encode(None).states.zero_()
    assert torch.equal(encoder.encode(None).states, ROWS)


def test_old_format_and_named_tensors(tmp_path):
    torch.save(ROWS, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.save({"features": ROWS, "mask": torch.ones(3)}, tmp_path / "named.pt")
    save_file({"features": ROWS, "mask": torch.ones(3)}, tmp_path / "both.safetensors")
    torch.save({"any": torch.nn.Parameter(ROWS)}, tmp_path / "single.pt")
    for name in ("old.pt", "named.pt", "both.safetensors", "single.pt"):
        states = load_encoder(str(tmp_path / name)).encode(None).states
        assert torch.equal(states, ROWS)
        assert not states.requires_grad
    save_file({"a": ROWS, "b": ROWS + 1}, tmp_path / "two.safetensors")
    with pytest.raises(EncoderError, match=r"two.safetensors holds 2 tensors \(a, b\)"):
        load_encoder(str(tmp_path / "two.safetensors"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_bad_value_is_named_with_file_row_and_shape(tmp_path, kind, bad):
    rows = ROWS.clone()
    rows[33, 4] = rows[41, 0] = bad
    iterator = load_encoder(str(write(tmp_path, kind, rows))).stream(None, window=10)
    for _ in range(3):
        next(iterator)
    words = rf"talk{kind} hold {bad} in row 33, column 4 \(rows 30 to 39, shape \(10, 12\)"
    with pytest.raises(EncoderError, match=words):
        next(iterator)


def test_large_finite_values_are_not_taken_for_bad_ones(tmp_path):
    rows = torch.full((4, 12), 3e38)
    encoder = load_encoder(str(write(tmp_path, ".pt", rows)))
    assert torch.equal(encoder.encode(None).states, rows)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (torch.zeros(0, 12), r"the shape \(0, 12\) and is empty"),
        (torch.zeros(5, 0), r"the shape \(5, 0\) and is empty"),
        (torch.zeros(5), r"the shape \(5,\)"),
        (torch.zeros(2, 5, 12), r"the shape \(2, 5, 12\)"),
        (torch.zeros(5, 12, dtype=torch.int64), r"the shape \(5, 12\) and holds int64"),
    ],
)
def test_shapes_and_types_that_are_no_features(tmp_path, kind, rows, words):
    with pytest.raises(EncoderError, match=rf"talk{kind} has {words}"):
        load_encoder(str(write(tmp_path, kind, rows)))


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_width_in_a_folder(tmp_path, kind):
    write(tmp_path, ".npy", ROWS, stem="a")
    write(tmp_path, kind, torch.zeros(5, 13), stem="b")
    encoder = load_encoder(str(tmp_path))
    with pytest.raises(EncoderError, match=rf"b{kind} has the shape \(5, 13\), .* 12 wide"):
        encoder.stream("b")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", ["cut", "garbage", "empty"])
def test_damaged_file(tmp_path, kind, damage):
    path = write(tmp_path, kind)
    whole = path.read_bytes()
    held = {"cut": whole[: len(whole) // 2], "garbage": b"\x07" * 400, "empty": b""}[damage]
    path.write_bytes(held)
    with pytest.raises(EncoderError, match=rf"talk{kind} \({len(held)} bytes\)"):
        load_encoder(str(path)).encode(None)


class Trap:
    """Unpickling this would be seen."""

    sprung = False

    def __reduce__(self):
        return (_spring, ())


def _spring():
    Trap.sprung = True


@pytest.mark.parametrize("how", ["npy", "pt", "pickle", "pickle as npy"])
def test_pickled_objects_are_refused_and_not_executed(tmp_path, how):
    path = tmp_path / ("talk.npy" if "npy" in how else "talk.pt")
    if how == "npy":
        np.save(path, np.array([Trap()], dtype=object), allow_pickle=True)
    elif how == "pt":
        torch.save([Trap()], path)
    else:
        path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(EncoderError, match=rf"{path.name} \(\d+ bytes\) holds pickled objects"):
        load_encoder(str(path))
    assert not Trap.sprung


def test_files_that_are_no_tensor(tmp_path):
    torch.save([1, 2, 3], tmp_path / "list.pt")
    with pytest.raises(EncoderError, match=r"list.pt holds a list; save one tensor"):
        load_encoder(str(tmp_path / "list.pt"))
    np.save(tmp_path / "names.npy", np.array([["a", "b"]]))
    with pytest.raises(EncoderError, match=r"names.npy has the shape \(1, 2\) and holds <U1"):
        load_encoder(str(tmp_path / "names.npy"))
    np.save(tmp_path / "big.npy", ROWS.numpy().astype(">f4"))
    with pytest.raises(EncoderError, match=r"big.npy .* byte order"):
        load_encoder(str(tmp_path / "big.npy"))


def test_folders_without_features(tmp_path):
    with pytest.raises(EncoderError, match=r"holds no file of features; give .pt"):
        load_encoder(str(tmp_path))
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(EncoderError, match=r"holds no file of features but notes.txt"):
        load_encoder(str(tmp_path))
    write(tmp_path, ".npy")
    write(tmp_path, ".pt")
    with pytest.raises(EncoderError, match="two files for the id 'talk'"):
        load_encoder(str(tmp_path))
