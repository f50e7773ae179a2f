"""Tiny stand-ins for the published data sets: two to four rows a split, in the published formats.

Texts are written for this project, images and videos are random pixels. They show that a loader
and what follows it work from end to end; numbers measured on them mean nothing.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qm_vllm_eval.datasets import booksum
from qm_vllm_eval.datasets.ego4d_synthetic import SyntheticSpec, write_synthetic
from qm_vllm_eval.datasets.fixture_media import SIZE, write_image, write_video
from qm_vllm_eval.datasets.fixture_texts import WRITERS
from qm_vllm_eval.datasets.published import PUBLISHED
from qm_vllm_eval.datasets.rows import DataSetError

VIDEO_SETS = ("ucf101", "something")
"""Their videos need OpenCV to be written."""


@dataclass(frozen=True)
class Fixture:
    """What was written.

    Attributes:
        folder: what ``open_published`` takes.
        lacking: why there are no videos (then their rows have a reason); "" if all is there.
    """

    folder: Path
    lacking: str = ""


def write_fixture(name: str, folder: str | Path) -> Fixture:
    """Writes a tiny set of that name, with all its splits.

    Args:
        name: of ``PUBLISHED``.
        folder: made if it is not there; files in it are written over.

    Raises:
        DataSetError: no such name, or images need Pillow, which is missing.
    """
    if name not in _WRITERS:
        raise DataSetError(f"there is no data set {name!r}; there are {', '.join(_WRITERS)}")
    folder = Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    return Fixture(folder, _WRITERS[name](folder) or "")


def _json(file: Path, value: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value), encoding="utf-8")


def _lines(file: Path, lines: list[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


_TALES = (
    ("The Ferry", "Old Marten rows his ferry across the brown river twice a day. One evening a "
     "girl asks to be taken over without a coin, and leaves him her red lantern instead.",
     "A ferryman takes a girl across the river and is paid with a lantern."),
    ("The Clock", "In the tower of Linn the clock has stood still for nine years. The baker's son "
     "climbs up with a cup of oil, and by noon the whole town is late for the first time.",
     "A boy oils the tower's clock, and the town finds out that it is late."),
)  # fmt: skip


def _booksum(folder: Path) -> None:
    for split in PUBLISHED["booksum"].splits:
        with (folder / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, booksum.COLUMNS, restval="")
            writer.writeheader()
            for bid, (title, text, summary) in enumerate(_TALES, 1):
                writer.writerow({
                    "bid": bid, "is_aggregate": False, "source": "invented", "chapter": text,
                    "book_id": f"{title}.chapter 1", "summary_text": summary,
                    "chapter_path": f"invented/{split}-{bid}.txt",
                })  # fmt: skip


def _ego4d_nlq(folder: Path) -> None:
    for seed, split in enumerate(("train", "val")):
        spec = SyntheticSpec(
            videos=1, clips_per_video=2, queries_per_clip=1, events_per_clip=2, kinds=4, width=8,
            clip_seconds=(60.0, 64.0), event_seconds=(3.2, 8.0), seed=seed,
        )  # fmt: skip
        write_synthetic(folder, split, spec)


def _wikitext(folder: Path) -> None:
    for split in ("train", "valid", "test"):
        lines = [" "]
        for title, text, summary in _TALES:
            lines += [f" = {title} = ", " ", f" {summary} ", " ", " = = Story = = ", " ",
                      f" {text} ", " "]  # fmt: skip
        _lines(folder / f"wiki.{split}.raw", lines)


_SYNSETS = ("n01440764 tench, Tinca tinca", "n02119789 kit fox, Vulpes macrotis")


def _imagenet(folder: Path) -> None:
    _lines(folder / "LOC_synset_mapping.txt", list(_SYNSETS))
    data = folder / "ILSVRC/Data/CLS-LOC"
    told = ["ImageId,PredictionString"]
    for label, synset in enumerate(_SYNSETS):
        wnid = synset.split()[0]
        for number in (1, 2):
            write_image(data / f"train/{wnid}/{wnid}_{number}.JPEG", 10 * label + number)
            name = f"ILSVRC2012_val_{2 * label + number:08d}"
            write_image(data / f"val/{name}.JPEG", 100 + 10 * label + number)
            told.append(f"{name},{wnid} 1 1 20 20 ")
    _lines(folder / "LOC_val_solution.csv", told)


def _ucf101(folder: Path) -> str:
    actions = ("ApplyEyeMakeup", "HandstandPushups")
    lists = folder / "ucfTrainTestlist"
    _lines(lists / "classInd.txt", [f"{at} {action}" for at, action in enumerate(actions, 1)])
    lacking = ""
    for fold in (1, 2, 3):
        train, test = [], []
        for at, action in enumerate(actions, 1):
            spelled = action.replace("stand", "Stand")  # as the published names are
            for group in (1, 2, 3):
                name = f"{action}/v_{spelled}_g{group:02d}_c01.avi"
                if fold == 1:
                    lacking = write_video(folder / "UCF-101" / name, 10 * at + group) or lacking
                if group == fold:
                    test.append(name)
                else:
                    train.append(f"{name} {at}")
        _lines(lists / f"trainlist{fold:02d}.txt", train)
        _lines(lists / f"testlist{fold:02d}.txt", test)
    return lacking


_CAPTIONS = (
    ("a patch of coloured squares on a card", "squares in many colours"),
    ("a blurred quilt seen from above", "soft blocks of colour on cloth"),
)


def _coco_captions(folder: Path) -> None:
    karpathy = []
    for number, split in enumerate(("train", "val")):
        images, notes = [], []
        for at, captions in enumerate(_CAPTIONS, 1):
            image_id = 100 * number + at
            name = f"{image_id:012d}.jpg"
            write_image(folder / f"{split}2017" / name, image_id)
            images.append({"id": image_id, "file_name": name, "width": SIZE[0], "height": SIZE[1]})
            notes += [{"id": 10 * image_id + which, "image_id": image_id, "caption": caption}
                      for which, caption in enumerate(captions)]  # fmt: skip
        _json(folder / f"annotations/captions_{split}2017.json",
              {"info": {}, "licenses": [], "images": images, "annotations": notes})  # fmt: skip
    for image_id, (split, captions) in enumerate(
        zip(("train", "restval", "val", "test", "test"), 3 * _CAPTIONS, strict=False), 201
    ):
        inner = "train2014" if split == "train" else "val2014"
        name = f"COCO_{inner}_{image_id:012d}.jpg"
        write_image(folder / inner / name, image_id)
        karpathy.append({"filepath": inner, "filename": name, "cocoid": image_id, "split": split,
                         "sentences": [{"raw": caption} for caption in captions]})  # fmt: skip
    _json(folder / "dataset_coco.json", {"dataset": "coco", "images": karpathy})


_ACTS = (
    ("Putting [something] onto [something]", "putting cup onto shelf", ("cup", "shelf")),
    ("[Something] falling like a rock", "pebble falling like a rock", ("pebble",)),
)


def _something(folder: Path) -> str:
    templates = [template.replace("[", "").replace("]", "") for template, _, _ in _ACTS]
    order = sorted(templates)
    labels = folder / "labels"
    _json(labels / "labels.json", {template: str(at) for at, template in enumerate(order)})
    lacking, answers = "", []
    for number, split in enumerate(PUBLISHED["something"].splits):
        entries: list[dict[str, Any]] = []
        for at, (template, caption, objects) in enumerate(_ACTS, 1):
            video_id = str(100 * number + at)
            video = folder / "20bn-something-something-v2" / f"{video_id}.webm"
            lacking = write_video(video, int(video_id)) or lacking
            if split == "test":
                entries.append({"id": video_id})
                answers.append(f"{video_id};{templates[at - 1]}")
            else:
                entries.append({"id": video_id, "label": caption, "template": template,
                                "placeholders": list(objects)})  # fmt: skip
        _json(labels / f"{split}.json", entries)
    _lines(labels / "test-answers.csv", answers)
    return lacking


_CLIPS = (("s01e01_seg01_clip_00", "bbt"), ("castle_s01e02_seg02_clip_03", "castle"))
_SAID = ((0.5, 2.0, "Where did you put the key?"), (2.5, 4.0, "Under the blue pot."))


def _tvqa(folder: Path) -> None:
    for split in ("train", "val", "test_public"):
        lines = []
        for qid, (clip, show) in enumerate(_CLIPS, 1):
            entry = {"qid": qid, "q": "Where is the key when it is asked for?", "vid_name": clip,
                     "a0": "In a drawer", "a1": "Under the blue pot", "a2": "On a nail",
                     "a3": "In the car", "a4": "Nobody knows", "ts": "0.5-4.0",
                     "show_name": show}  # fmt: skip
            if split != "test_public":
                entry["answer_idx"] = 1
            lines.append(json.dumps(entry))
        _lines(folder / f"tvqa_qa_release/tvqa_{split}.jsonl", lines)
    for seed, (clip, show) in enumerate(_CLIPS):
        cues = []
        for number, (start, end, text) in enumerate(_SAID, 1):
            cues += [str(number), f"{_srt_time(start)} --> {_srt_time(end)}", text, ""]
        _lines(folder / f"tvqa_subtitles/{clip}.srt", cues)
        for frame in range(1, 13):
            write_image(folder / f"frames_hq/{show}_frames/{clip}/{frame:05d}.jpg", seed)


def _srt_time(seconds: float) -> str:
    return f"00:00:{int(seconds):02d},{round(seconds % 1 * 1000):03d}"


def _qasper(folder: Path) -> None:
    def answer(**told: Any) -> dict[str, Any]:
        blank = {"unanswerable": False, "extractive_spans": [], "yes_no": None,
                 "free_form_answer": "", "evidence": [], "highlighted_evidence": []}  # fmt: skip
        return {"answer": {**blank, **told}, "annotation_id": "a", "worker_id": "w"}

    text = "We weigh each pebble twice. The scale errs by two grams at most."
    asked = (
        ("How often is a pebble weighed?",
         [answer(extractive_spans=["twice"], evidence=[text]),
          answer(free_form_answer="Two times.", evidence=[text])]),
        ("Is the scale exact?", [answer(yes_no=False, evidence=[text])]),
        ("Who paid for the scale?", [answer(unanswerable=True)]),
    )  # fmt: skip
    for split in ("train", "dev", "test"):
        paper = {
            "title": "On the Weight of Pebbles",
            "abstract": "We ask how heavy pebbles are.",
            "full_text": [{"section_name": "Method ::: Scale", "paragraphs": [text]},
                          {"section_name": None, "paragraphs": ["Pebbles are heavy."]}],
            "qas": [{"question": question, "question_id": f"{split}{number}", "answers": answers}
                    for number, (question, answers) in enumerate(asked)],
        }  # fmt: skip
        _json(folder / f"qasper-{split}-v0.3.json", {"0000.00001": paper})


_WRITERS: dict[str, Callable[[Path], str | None]] = {
    "booksum": _booksum,
    "ego4d_nlq": _ego4d_nlq,
    "wikitext": _wikitext,
    "imagenet": _imagenet,
    "ucf101": _ucf101,
    "coco_captions": _coco_captions,
    "something": _something,
    "tvqa": _tvqa,
    "qasper": _qasper,
    **WRITERS,
}
