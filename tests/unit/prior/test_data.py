"""Samples from files, and what is said about files that give none."""

from __future__ import annotations

import json

import pytest
import torch

from qm_vllm.prior.data import DataError, read


@pytest.fixture
def features(tmp_path):
    folder = tmp_path / "features"
    folder.mkdir()
    for i in range(20):
        torch.save(torch.randn(5, 6), folder / f"{i:02}.pt")
    return folder


def test_text_becomes_pieces_in_order_and_its_end_is_held_out(text_file):
    data = read([text_file], [], 16)
    whole = text_file.read_text().split()
    pieces = [*data.train, *data.heldout]
    assert " ".join(piece.source for piece in pieces).split() == whole
    assert 60 <= len(data.train[0].source) <= 90
    assert len(data.heldout) == len(pieces) // 10
    for one, two in zip(data.train, data.train[1:], strict=False):
        assert one.following == two.source


def test_named_held_out_files_leave_the_data_whole(text_file, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("something else entirely " * 40)
    data = read([text_file], [other], 16)
    assert " ".join(piece.source for piece in data.train).split() == text_file.read_text().split()
    assert all("else" in piece.source for piece in data.heldout)


def test_every_tenth_feature_file_is_held_out(features):
    data = read([features], [], 16)
    assert [s.source.name for s in data.heldout] == ["09.pt", "19.pt"]
    assert len(data.train) == 18
    assert data.num_classes == 0
    assert not data.has_spans


def test_a_manifest_gives_labels_and_spans(features):
    rows = [{"path": f"{i:02}.pt", "label": i % 3, "span": [0.25, 0.5]} for i in range(20)]
    path = features / "all.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    data = read([path], [], 16)
    assert (data.num_classes, data.has_spans) == (3, True)
    assert data.train[1].label == 1
    assert data.train[1].span == (0.25, 0.5)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("nonsense", "line 1: not a JSON object"),
        ("[]", "line 1: not a JSON object"),
        ('{"label": 1}', 'with a "path"'),
        ('{"path": "gone.pt"}', "gone.pt does not exist"),
        ('{"path": "00.pt", "label": -1}', "label=-1 must be"),
        ('{"path": "00.pt", "label": "cat"}', "label='cat' must be"),
        ('{"path": "00.pt", "span": [0.5, 0.5]}', "span=.* must be two shares"),
        ('{"path": "00.pt", "span": [1]}', "span=.* must be two shares"),
        ("", "has no rows"),
    ],
)
def test_a_malformed_row_is_named(features, row, message):
    path = features / "bad.jsonl"
    path.write_text(row)
    with pytest.raises(DataError, match=message):
        read([path], [], 16)


def test_unusable_files_are_named(tmp_path):
    empty = tmp_path / "empty.txt"
    empty.write_text("  \n")
    binary = tmp_path / "binary.txt"
    binary.write_bytes(b"\xff\xfe\x00")
    short = tmp_path / "short.txt"
    short.write_text("one piece")
    odd = tmp_path / "odd.csv"
    odd.write_text("a,b")
    folder = tmp_path / "folder"
    folder.mkdir()
    for path, message in (
        (empty, "empty.txt is empty"), (binary, "binary.txt is not UTF-8"),
        (tmp_path / "gone.txt", "does not exist"), (odd, "odd.csv is not a"),
        (folder, "folder folder holds no"), (short, "nothing to hold out"),
    ):
        with pytest.raises(DataError, match=message):
            read([path], [], 16)
