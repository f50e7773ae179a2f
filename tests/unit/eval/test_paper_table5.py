"""Table 5 without an engine or trained weights: a tiny random encoder, a fake replica."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from qm_vllm_eval.datasets.catalogue import open_published
from qm_vllm_eval.datasets.fixtures import write_fixture
from qm_vllm_eval.datasets.rows import DataSetError
from qm_vllm_eval.datasets.something import SomethingRow
from qm_vllm_eval.paper import decoder, table5, table5_states
from qm_vllm_eval.paper.scale import SCALES, SMOKE
from qm_vllm_eval.paper.table5 import Table5Data, rows, sentence
from qm_vllm_eval.paper.table5_states import LONGEST, Captions, actions, captions, pair

CPU = torch.device("cpu")
TINY = replace(SMOKE, width=32, image_side=24, video_side=24, pooled=2, steps=2, batch=4)
KEYS = {
    "task", "metric", "baseline", "quickmerge", "difference", "compression", "compression_std",
    "rows", "data", "paper_baseline", "paper_quickmerge", "paper_compression", "reason",
}


class TinyEncoder:
    """Random projections of 4 x 4 pixels; three layers of width 16 and a class token."""

    name, special_per_image, device, dtype = "tiny", 1, CPU, torch.float32

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.weights = torch.randn(3, 48, 16, generator=generator)

    def model(self, pixel_values, output_hidden_states):
        patches = torch.nn.functional.unfold(pixel_values, 4, stride=4).mT
        layers = [torch.nn.functional.pad(patches @ weight, (0, 0, 1, 0))
                  for weight in self.weights]
        return SimpleNamespace(hidden_states=layers)


class Words:
    """A tokenizer of whole words, each a new id."""

    def __init__(self):
        self.words = []

    def __call__(self, text, add_special_tokens):
        self.words += [word for word in text.split() if word not in self.words]
        return {"input_ids": [self.words.index(word) for word in text.split()]}

    def decode(self, ids, skip_special_tokens):
        return " ".join(self.words[number] for number in ids)


# --- generation ---------------------------------------------------------------------------------


@pytest.fixture
def scripted(monkeypatch):
    """A decoder that says a script; counts its steps."""
    script = torch.tensor([[2, 9, 5, 5, 5], [3, 3, 3, 9, 5]])
    steps = []

    class Writer:
        def __init__(self, model, tokens):
            self.said = 0

        def logits(self, last):
            self.said += 1
            steps.append(last.shape[1])
            return 99.0 * torch.nn.functional.one_hot(script[:, self.said - 1], 10).float()

    class Rows:
        def __len__(self):
            return 2

        def source(self, rows, device):
            return rows

    monkeypatch.setattr(decoder, "_Writer", Writer)
    trained = SimpleNamespace(method=lambda source: source, decoder=None)

    def say(**options):
        return decoder.sampled(trained, Rows(), 5, 4, 0, CPU, **options).tolist()

    say.steps = steps
    return say


def test_greedy_generation_stops_at_the_end_id(scripted):
    assert scripted(greedy=True, end=9) == [[2, 9, 9, 9, 9], [3, 3, 3, 9, 9]]
    assert len(scripted.steps) == 4  # all rows had ended


def test_without_an_end_every_row_is_full(scripted):
    full = [[2, 9, 5, 5, 5], [3, 3, 3, 9, 5]]
    assert scripted(greedy=True) == full
    assert scripted() == full  # drawn, but the script leaves no choice


# --- MSCOCO and SSv2 ----------------------------------------------------------------------------


def test_captions_become_ids_and_words_again():
    words = Captions(Words(), ["a red cat", "a dog"])
    assert len(words) == 6
    ids = words.targets(["a red cat", "a blue dog"])
    assert ids.shape == (2, LONGEST)
    assert ids[0, 3] == words.end
    assert ids[1, 1] == words.unseen
    assert (ids[0, 4:] == -100).all()
    assert words.text(ids[0].tolist()) == "a red cat"
    assert words.text([*ids[1, :3].tolist(), words.end, 0]) == "a dog"


def test_a_long_caption_is_cut_before_its_end_id():
    words = Captions(Words(), ["a"])
    ids = words.targets(["a " * 100])
    assert ids[0].tolist() == [0] * (LONGEST - 1) + [words.end]


def test_captions_of_the_fixture(tmp_path):
    folder = write_fixture("coco_captions", tmp_path).folder
    sides = [open_published("coco_captions", folder, split) for split in ("train", "validation")]
    found = captions(*sides, (3, 3), TinyEncoder(), Words(), TINY, CPU)
    assert found["rows"] == 2
    assert found["compression"] > 1
    assert 0 <= found["baseline"] <= 100
    assert 0 <= found["quickmerge"] <= 100


def test_a_decoder_that_knows_the_captions_scores_100(tmp_path, monkeypatch):
    folder = write_fixture("coco_captions", tmp_path).folder
    side = list(open_published("coco_captions", folder, "train"))
    words = Captions(Words(), [text for row in side for text in row.references])
    ids = words.targets([row.references[1] for row in side])
    monkeypatch.setattr(table5_states, "sampled", lambda *given, **options: ids)
    told = [row.references for row in side]
    score = table5_states.caption_bleu(None, None, words, told, 4, CPU)
    assert score == pytest.approx(100)


def test_actions_of_the_fixture(tmp_path):
    pytest.importorskip("cv2")
    made = write_fixture("something", tmp_path)
    if made.lacking:
        pytest.skip(made.lacking)
    sides = [open_published("something", made.folder, split) for split in ("train", "validation")]
    broken = tmp_path / "broken.webm"
    broken.write_bytes(b"no video")
    train_rows = [SomethingRow("x", broken, label=0), *sides[0]]
    found = actions(train_rows, sides[1], 2, (3, 3), TinyEncoder(), TINY, CPU)
    assert found["rows"] == 2
    assert found["baseline"] in (0, 50, 100)
    with pytest.raises(DataSetError, match="broken"):
        actions(train_rows[:1], sides[1], 2, (3, 3), TinyEncoder(), TINY, CPU)


def test_the_same_decoder_reads_all_states_and_merged_ones():
    states = torch.randn(6, 12, 8, generator=torch.Generator().manual_seed(0))
    rest = torch.rand(2, 6, 12, generator=torch.Generator().manual_seed(1))
    split = table5_states.Split(
        states.half(), *rest, torch.zeros(6, 1, dtype=torch.uint8), torch.ones(6).long(),
        (torch.arange(6) % 2)[:, None], torch.ones(6), torch.empty(6, 0), torch.zeros(6),
    )
    prepared = table5_states.Prepared("image", split, split, 2, "made up", "none", torch.empty(0))
    seen = []

    def measured(trained):
        seen.append(trained)
        return float(len(seen))

    found = pair(prepared, TINY, CPU, measured)
    assert [trained.method.name for trained in seen] == ["Fixed Patches", "QuickMerge++"]
    assert seen[0].decoder is seen[1].decoder
    assert (found["baseline"], found["quickmerge"], found["rows"]) == (1.0, 2.0, 6)
    assert 1 < found["compression"] <= 12 / 4
    assert found["compression_std"] >= 0


def test_a_split_without_usable_rows_says_why():
    bad = SomethingRow("x", reason="there is no video")
    with pytest.raises(DataSetError, match="there is no video"):
        actions([bad], [bad], 2, (3, 3), TinyEncoder(), TINY, CPU)


# --- the table ----------------------------------------------------------------------------------


class InProcess:
    """In place of a child: the same work in this process, with a replica that has no engine."""

    def __init__(self, make, settings, model_name):
        settings = replace(settings, replica="tests.unit.eval.ray_fakes:FakeReplica")
        self.ask = make(settings, model_name)

    def ready(self):
        pass

    def stop(self):
        pass


@pytest.fixture
def without_engine(monkeypatch):
    monkeypatch.setattr(table5, "Child", InProcess)
    held = {"baseline": 40.0, "quickmerge": 39.0, "compression": 2.0, "compression_std": 0.1,
            "rows": 2}
    monkeypatch.setattr(table5, "_states", lambda *given: held)


def test_four_rows_in_the_papers_order(without_engine, tmp_path):
    found = rows(SCALES["smoke"], tmp_path, Table5Data(), CPU)
    assert [row["task"] for row in found] == ["MSCOCO", "SSv2", "TVQA", "QASPER"]
    assert [set(row) for row in found] == [KEYS] * 4
    assert {row["data"] for row in found} == {table5.FIXTURE}
    coco, _, tvqa, qasper = found
    assert (coco["difference"], coco["reason"]) == (-1.0, "")
    assert (coco["paper_baseline"], coco["paper_quickmerge"]) == (35.7, 36.0)
    assert (tvqa["rows"], qasper["rows"]) == (2, 3)
    assert tvqa["compression"] == pytest.approx(100 / 41)
    assert tvqa["baseline"] == qasper["quickmerge"] == 0  # what the fake says is wrong
    json.dumps(found)


def test_a_path_of_the_users_is_named(without_engine, tmp_path):
    mine = write_fixture("qasper", tmp_path / "mine").folder
    found = rows(SCALES["medium"], tmp_path, Table5Data(qasper=str(mine)), CPU)
    assert (found[3]["data"], found[3]["reason"], found[3]["rows"]) == ("mine", "", 3)
    assert "cocodataset.org" in found[0]["reason"]
    assert found[0]["data"] == ""


def test_full_without_data_starts_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(table5, "Child", None)
    found = rows(SCALES["full"], tmp_path, Table5Data(), CPU)
    assert all(" get " in row["reason"] and row["baseline"] is None for row in found)
    assert not (tmp_path / "fixtures").exists()


def test_a_failure_is_the_reason_of_its_row_alone(without_engine, monkeypatch, tmp_path):
    def broken(name, *given):
        raise DataSetError(f"no OpenCV for {name}")

    class Dead(InProcess):
        def ready(self):
            raise RuntimeError("the engine's process failed:\nTraceback (most recent call last):\n"
                               "  somewhere\nUserError: vLLM did not start")

    monkeypatch.setattr(table5, "_states", broken)
    found = rows(SCALES["smoke"], tmp_path, Table5Data(), CPU)
    assert [row["reason"] for row in found] == [
        "no OpenCV for coco_captions", "no OpenCV for something", "", ""]
    monkeypatch.setattr(table5, "Child", Dead)
    found = rows(SCALES["smoke"], tmp_path, Table5Data(), CPU)
    assert [row["reason"] for row in found[2:]] == ["UserError: vLLM did not start"] * 2
    assert all(row["difference"] is None and row["rows"] == 0 for row in found)


def test_what_was_measured_is_not_measured_again(without_engine, monkeypatch, tmp_path):
    first = rows(SCALES["smoke"], tmp_path, Table5Data(), CPU)
    monkeypatch.setattr(table5, "_states", lambda *given: 1 / 0)
    assert rows(SCALES["smoke"], tmp_path, Table5Data(), CPU) == first
    other = rows(SCALES["smoke"], tmp_path, Table5Data(image_encoder="vit"), CPU)
    assert other[0]["reason"] == "division by zero"  # other settings are


def test_sentence():
    assert sentence(ValueError()) == "ValueError"
    assert sentence(ValueError("one\ntwo")) == "one"
