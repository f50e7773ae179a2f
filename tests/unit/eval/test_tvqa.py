"""TVQA's loader on invented questions, with subtitles in all published forms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qm_vllm_eval.datasets import DataSetError
from qm_vllm_eval.datasets.fixture_media import write_image
from qm_vllm_eval.datasets.tvqa import Subtitle, open_tvqa, parse_srt

BBT, MET = "s05e02_seg02_clip_01", "met_s06e22_seg01_clip_02"
SAID = (Subtitle(1.5, 2.25, "(Ann:) Where is it?"), Subtitle(3661.0, 3662.0, "42 cups"))
SRT = (
    "1\n00:00:01,500 --> 00:00:02,250\n(Ann:) Where\nis it?\n\n"
    "2\n01:01:01,000 --> 01:01:02,000\n42 cups\n\n"
)


def question(qid: int = 7, **more: Any) -> dict[str, Any]:
    answers = {f"a{number}": f"answer {number}" for number in range(5)}
    held = {"qid": qid, "q": "What is in her hand?", **answers, "answer_idx": 4}
    return {**held, "ts": "1.21-8.49", "vid_name": MET, "show_name": "A Show", **more}


def write(root: Path, name: str = "tvqa_val", held: list[Any] | None = None) -> Path:
    (root / "tvqa_subtitles").mkdir(parents=True, exist_ok=True)
    for clip in (BBT, MET):
        (root / "tvqa_subtitles" / f"{clip}.srt").write_text(SRT)
    lines = [question(), question(8, vid_name=BBT, answer_idx=0)] if held is None else held
    file = root / f"{name}.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return root


def test_a_question_with_its_answers_subtitles_and_window(tmp_path: Path) -> None:
    data = open_tvqa(write(tmp_path))
    first, second = data
    assert (first.row_id, first.qid, first.video) == ("tvqa-7", 7, MET)
    assert first.answers == tuple(f"answer {number}" for number in range(5))
    assert (first.answer, second.answer) == (4, 0)
    assert first.window == (1.21, 8.49)
    assert first.subtitles == SAID
    assert first.text == "(Ann:) Where is it?\n42 cups"
    assert first.frames is None
    assert first.usable
    assert list(data) == [first, second]


def test_all_forms_of_subtitles_give_the_same_rows(tmp_path: Path) -> None:
    rows = list(open_tvqa(write(tmp_path)))
    parts = [{"start": said.start, "end": said.end, "text": said.text} for said in SAID]
    clips = [{"vid_name": clip, "sub": parts} for clip in (BBT, MET)]
    file = tmp_path / "tvqa_preprocessed_subtitles.jsonl"
    file.write_text("".join(json.dumps(clip) + "\n" for clip in clips))
    listed = tmp_path / "subs.json"
    listed.write_text(json.dumps(clips))
    (tmp_path / "tvqa_subtitles").rename(tmp_path / "moved")
    assert list(open_tvqa(tmp_path)) == rows
    for told in (file, listed, tmp_path / "moved"):
        assert list(open_tvqa(tmp_path / "tvqa_val.jsonl", subtitles=told)) == rows


def test_splits(tmp_path: Path) -> None:
    held = question()
    del held["answer_idx"], held["ts"]
    root = write(tmp_path, "tvqa_test_public", [held])
    (row,) = open_tvqa(root, "test")
    assert (row.answer, row.window, row.usable) == (-1, None, True)
    (root / "tvqa_qa_release").mkdir()
    write(root / "tvqa_qa_release", "tvqa_train", [question(1)])
    assert [row.qid for row in open_tvqa(root, "train")] == [1]
    with pytest.raises(DataSetError, match=r"has no questions \(tvqa_val\.jsonl"):
        open_tvqa(root, "validation")


def test_frames_are_found_below_their_shows(tmp_path: Path) -> None:
    root = write(tmp_path)
    write_image(root / "frames_hq" / "bbt_frames" / BBT / "00001.jpg", 1)
    without, row = open_tvqa(root, frames=root / "frames_hq")
    assert without.reason == f"there are no frames of {MET} in {root}/frames_hq"
    assert row.frames == root / "frames_hq" / "bbt_frames" / BBT
    write_image(root / "flat" / MET / "00001.jpg", 1)
    assert next(iter(open_tvqa(root, frames=root / "flat"))).frames == root / "flat" / MET
    with pytest.raises(DataSetError, match=r"no folder .* with the frames"):
        open_tvqa(root, frames=root / "none")


def test_what_is_wrong_with_a_question_is_its_reason(tmp_path: Path) -> None:
    held = [
        question(1, ts="nan-nan"),
        question(2, ts="9-3"),
        question(3, answer_idx=5),
        question(4, a3=""),
        question(5, vid_name="../x"),
        question(6, vid_name="met_s01e01_seg01_clip_09"),
        {"qid": 7},
        question(8),
        question(8),
        {**question(), "qid": "nine"},
    ]
    rows = list(open_tvqa(write(tmp_path, held=held)))
    assert [row.usable for row in rows] == [True] + [False] * 6 + [True, False, False]
    assert rows[0].window is None
    assert rows[1].reason == "tvqa_val.jsonl row 2 has '9-3' as 'ts', not '76.01-84.2'"
    assert rows[2].reason == "tvqa_val.jsonl row 3 has 5 as 'answer_idx'"
    assert "lacks the question or one of the 5 answers" in rows[3].reason
    assert "'../x' as 'vid_name', which is no name" in rows[4].reason
    assert rows[5].reason.startswith("there are no subtitles")
    assert rows[6].reason == "tvqa_val.jsonl row 7 has no column 'q'"
    assert rows[8].row_id == "tvqa-8#2"
    assert rows[9].reason.endswith("has 'nine' as 'qid', not a number")


def test_bad_subtitles_are_the_reason_of_their_clips(tmp_path: Path) -> None:
    root = write(tmp_path)
    (root / "tvqa_subtitles" / f"{MET}.srt").write_text("words without times")
    bad, good = open_tvqa(root)
    assert f"{MET}.srt is no srt file: it has no line" in bad.reason
    assert good.usable
    file = root / "tvqa_preprocessed_subtitles.jsonl"
    file.write_text(json.dumps({"vid_name": MET, "sub": [{"start": "x"}]}) + "\n")
    broken, missing = open_tvqa(root)
    assert broken.reason == f"{file.name} {MET} has no list of 'start', 'end' and 'text' as 'sub'"
    assert missing.reason == f"{file.name} has no subtitles of {BBT}"
    file.write_text("{}\n")
    with pytest.raises(DataSetError, match="has no clip with 'vid_name' and 'sub'"):
        open_tvqa(root)


def test_srt_files_as_they_come() -> None:
    assert parse_srt(SRT.encode()) == SAID
    assert parse_srt(b"\xef\xbb\xbf" + SRT.replace("\n", "\r\n").encode()) == SAID
    (one,) = parse_srt("1\n0:00:01.5 --> 0:00:02.25 X1:40\nCaf\xe9".encode("latin-1"))
    assert one.text == "Caf\xe9"
    assert (one.start, one.end) == (1.5, 2.25)
    assert parse_srt(b"1\n00:00:01,000 --> 00:00:02,000\n\n") == ()
    assert parse_srt(b"") == ()


def test_without_data_the_error_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataSetError, match=r"get TVQA from github\.com/jayleicn/TVQA"):
        open_tvqa(tmp_path / "nothing")
    root = write(tmp_path)
    with pytest.raises(DataSetError, match=r"no file or folder .*subs with the subtitles"):
        open_tvqa(root, subtitles=root / "subs")
    for file in (root / "tvqa_subtitles").iterdir():
        file.unlink()
    (root / "tvqa_subtitles").rmdir()
    with pytest.raises(DataSetError, match="has no subtitles"):
        open_tvqa(root)
