"""RULER's tasks: solved from their text alone by parsers that know nothing of how it was made."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from functools import lru_cache
from pathlib import Path

import pytest

from qm_vllm.errors import UserError
from qm_vllm_eval.haystacks import text_of
from qm_vllm_eval.match import match_score
from qm_vllm_eval.prompt import Prompt, prompt_length, prompt_parts
from qm_vllm_eval.sample import SPLITS, Sample
from qm_vllm_eval.study.session import _tasks
from qm_vllm_eval.tasks import DATA, RULER, TASKS, build_sample, data
from qm_vllm_eval.tasks.base import TOLERANCE
from tests.unit.eval.data_files import hotpot, squad, write
from tests.unit.eval.tokenizers import PlainTokenizer, embedded_tokenizer

NEEDLES = (
    "niah_single_1", "niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multikey_2",
    "niah_multikey_3", "niah_multivalue", "niah_multiquery",
)
NAMES = (*NEEDLES, "vt", "cwe", "fwe", "qa_1", "qa_2")
GENERATED = {**dict.fromkeys(NEEDLES, 128), "vt": 30, "cwe": 120, "fwe": 50, "qa_1": 32, "qa_2": 32}
EACH = pytest.mark.parametrize("task", NAMES)
BOTH = pytest.mark.parametrize("split", SPLITS)
NUMBER = re.compile(r"\d{7}")
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
WORDS = re.compile(r"[a-z]+-[a-z]+")
DOCUMENTS = 24
REAL = os.environ.get("QM_VLLM_DATA")


@pytest.fixture(scope="module", autouse=True)
def _files(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("data")
    write(folder, data.SQUAD, json.dumps({"data": [squad(i) for i in range(DOCUMENTS)]}))
    write(folder, data.HOTPOT, json.dumps([hotpot(i) for i in range(DOCUMENTS)]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QM_VLLM_DATA", str(folder))
        yield


def build(task: str, split: str, index: int, length: int, tokenizer, visible=True) -> Sample:
    return build_sample(
        task, length=length, split=split, index=index, tokenizer=tokenizer, haystacks=("essays",),
        query_visible=visible,
    )


@lru_cache(maxsize=512)
def built(task: str, split: str, index: int, length: int = 1024) -> Sample:
    return build(task, split, index, length, embedded_tokenizer())


def test_there_are_thirteen_tasks_of_one_family() -> None:
    assert tuple(name for name, task in TASKS.items() if task.family == RULER) == NAMES
    assert len(NAMES) == 13


@EACH
@BOTH
@pytest.mark.parametrize("length", [None, 1000, 4096])
def test_length_is_met(task: str, split: str, length: int | None) -> None:
    wanted = length or TASKS[task].minimum
    for index in range(2):
        for tokenizer in (embedded_tokenizer(), PlainTokenizer()):
            sample = build(task, split, index, wanted, tokenizer)
            assert wanted - TOLERANCE <= prompt_length(sample, tokenizer) <= wanted


@EACH
@BOTH
def test_equal_arguments_give_equal_samples(task: str, split: str) -> None:
    first = built(task, split, 1)
    assert built.__wrapped__(task, split, 1) == first
    assert len({built(task, split, index).context for index in range(4)}) == 4
    assert first.sample_id == f"{task}-1024-{split}-1"


def digest() -> str:
    """Of a sample of each task that needs no data."""
    samples = [build(task, "report", 4, 1024, PlainTokenizer()) for task in NAMES[:-2]]
    return hashlib.sha256(repr(samples).encode()).hexdigest()


def test_samples_are_equal_in_another_process() -> None:
    code = "from tests.unit.eval.test_ruler import digest; print(digest())"
    there = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONHASHSEED": "77"}, cwd=Path(__file__).parents[3],
    )
    assert there.stdout.strip() == digest()


@EACH
@BOTH
@pytest.mark.parametrize("length", [1024, 4096])
def test_form_of_a_sample(task: str, split: str, length: int) -> None:
    for index in range(3):
        sample = built(task, split, index, length)
        assert sample.metric == ("any" if task.startswith("qa") else "all")
        assert sample.max_new_tokens == GENERATED[task]
        assert len(prompt_parts(sample, embedded_tokenizer())[2]) <= GENERATED[task]
        assert match_score(sample.metric, sample.target, sample.answers, sample.target) == 1
        assert sample.target.startswith(" ")
        assert all(answer in sample.context for answer in sample.answers)


@EACH
@BOTH
def test_the_question_holds_no_reference_and_can_be_hidden(task: str, split: str) -> None:
    seen = built(task, split, 3)
    asked = (seen.question + seen.answer_prefix).lower()
    assert not any(answer.lower() in asked for answer in seen.answers)
    blind = build(task, split, 3, 1024, embedded_tokenizer(), visible=False)
    assert blind.sample_id == f"{seen.sample_id}-blind"
    assert (blind.context, blind.question) == (seen.context, seen.question)
    prompt = Prompt.of(blind, embedded_tokenizer())
    shown = embedded_tokenizer().decode(prompt.ids[: prompt.seen])
    assert shown.endswith(seen.context)
    # The example of cwe asks the same of another list, and nothing else can be asked.
    assert (seen.question in shown) == (task == "cwe")


def notes(context: str) -> list[tuple[str, str]]:
    return re.findall(r"A (?:number|code) noted for (\S+) is (\S+)\.", context)


@pytest.mark.parametrize("task", NEEDLES)
@BOTH
@pytest.mark.parametrize("length", [1024, 4096])
def test_needles_are_found(task: str, split: str, length: int) -> None:
    for index in range(4):
        sample = built(task, split, index, length)
        found = notes(sample.context)
        asked = sample.question.split(" note for ")[1].split("?")[0]
        keys = re.split(r", | and ", asked)
        told = [value for key in keys for name, value in found if name == key]
        assert told == list(sample.answers)
        every_key, every_value = {key for key, _ in found}, [value for _, value in found]
        assert len(set(every_value)) == len(found)
        key_form = UUID if task == "niah_multikey_3" else WORDS
        value_form = UUID if task in ("niah_single_3", "niah_multikey_3") else NUMBER
        assert all(map(key_form.fullmatch, every_key))
        assert all(map(value_form.fullmatch, every_value))
        numbers = (len(every_key), len(found), len(keys), len(told))
        if task in ("niah_multikey_2", "niah_multikey_3"):
            lines = sample.context.split("\n\n")[1].split("\n")
            assert all(len(notes(line)) == 1 for line in lines)
            assert numbers == (len(lines), len(lines), 1, 1)
            assert len(lines) > length / 110
        else:
            assert numbers == {
                "niah_multikey_1": (4, 4, 1, 1), "niah_multivalue": (1, 4, 1, 4),
                "niah_multiquery": (4, 4, 4, 4),
            }.get(task, (1, 1, 1, 1))


@BOTH
def test_noise_is_the_same_sentences_again_and_again(split: str) -> None:
    text = built("niah_single_1", split, 0).context.split("\n\n")[1]
    sentences = Counter(re.findall(r"[A-Z][^.]+\.", text))
    assert sum(count == 1 for count in sentences.values()) == 1
    often = [count for count in sentences.values() if count > 1]
    assert len(often) == 5
    assert max(often) - min(often) <= 1


@pytest.mark.parametrize("task", ["niah_single_1", "niah_multikey_2"])
def test_single_needles_are_spread_over_the_depth(task: str) -> None:
    samples = [built(task, "tune", index) for index in range(16)]
    depths = [sample.context.index(sample.answers[0]) / len(sample.context) for sample in samples]
    quarters = Counter(min(int(depth * 4), 3) for depth in depths)
    assert min(quarters[i] for i in range(4)) >= 2


def values(context: str) -> dict[str, str]:
    """What each variable holds in the end: assignments are followed to a number."""
    given = dict(re.findall(r"VAR (\w+) = (?:VAR )?(\w+)\.", context))

    def held(name: str) -> str:
        return name if name.isdigit() else held(given[name])

    return {name: held(name) for name in given}


@BOTH
@pytest.mark.parametrize("length", [1024, 4096])
def test_variables_are_tracked(split: str, length: int) -> None:
    for index in range(4):
        sample = built("vt", split, index, length)
        value = re.search(r"the value (\d{5}),", sample.question)[1]
        held = values(sample.context)
        assert {name for name, own in held.items() if own == value} == set(sample.answers)
        assert all(re.fullmatch(r"[A-Z]{5}", name) for name in held)
        assert (len(held), len(sample.answers)) == (10, 5)  # five of them in the example
        example, text = sample.context.rsplit("\n\n", 1)
        assert not any(name in example for name in sample.answers)
        assert len(values(text)) == 5
        places = [text.index(f"VAR {name} =") for name in sample.answers]
        assert places == sorted(places)
        shown = re.search(r"hold (\d{5}) are (.+)\.", example)
        assert [name for name, own in held.items() if own == shown[1]] == shown[2].split(", ")


def lists(context: str) -> list[list[str]]:
    """The words of the numbered lists of a context; the numbers are those of their places."""
    found: list[list[str]] = []
    for number, word in re.findall(r"(\d+)\. ([a-z-]+)", context):
        if number == "1":
            found.append([])
        found[-1].append(word)
        assert len(found[-1]) == int(number)
    return found


@BOTH
@pytest.mark.parametrize(("length", "repeats"), [(1024, (3, 1, 6, 1)), (4096, (10, 3, 30, 3))])
def test_common_words_are_counted(split: str, length: int, repeats: tuple[int, ...]) -> None:
    for index in range(3):
        sample = built("cwe", split, index, length)
        example, shown, listed = lists(sample.context)
        assert not set(example) & set(listed)
        for words, answers, often, seldom in (
            (example, shown, *repeats[:2]), (listed, list(sample.answers), *repeats[2:]),
        ):
            counts = Counter(words)
            assert {word for word, _ in counts.most_common(10)} == set(answers)
            assert sorted(set(counts.values())) == [seldom, often]
            assert sum(count == often for count in counts.values()) == len(answers) == 10
            assert sorted(answers, key=words.index) == answers
        assert len(set(example)) == (20 if length < 4096 else 40)
        assert not any(
            answer in word for answer in sample.answers for word in {*listed, *example} - {answer}
        )
        assert lists(sample.target) == [list(sample.answers)]


def test_common_words_do_not_run_out() -> None:
    tokenizer = PlainTokenizer()
    sample = build("cwe", "report", 0, 60_000, tokenizer)
    counts = Counter(lists(sample.context)[2])
    assert sorted(set(counts.values())) == [3, 30]
    assert len(counts) > 9_000
    assert any("-" in word for word in counts)


@BOTH
@pytest.mark.parametrize("length", [320, 1024, 4096])
def test_frequent_words_are_counted(split: str, length: int) -> None:
    for index in range(4):
        sample = built("fwe", split, index, length)
        counts = Counter(sample.context.split("\n\n")[1].split())
        (noise, dots), *ranked = counts.most_common()
        assert noise == "..."
        assert [word for word, _ in ranked[:3]] == list(sample.answers)
        assert ranked[2][1] > ranked[3][1]
        assert all(re.fullmatch("[a-z]{6}", word) for word, _ in ranked)
        for rank, (_, count) in enumerate(ranked, 2):
            assert abs(count - dots / rank**2) <= 1  # zeta with alpha 2, rounded down
        assert len(ranked) <= max(length // 50, 6)


@pytest.mark.parametrize("task", ["qa_1", "qa_2"])
@BOTH
@pytest.mark.parametrize("length", [1024, 4096])
def test_documents_hold_the_answer_once(task: str, split: str, length: int) -> None:
    for index in range(4):
        sample = built(task, split, index, length)
        documents = re.split(r"Document \d+:\n", sample.context)[1:]
        assert len(documents) == int(re.findall(r"Document (\d+):", sample.context)[-1])
        own = int(sample.answers[0].rsplit("x")[1])
        assert own == 2 * index + SPLITS.index(split)
        wanted = (
            [part["context"] for part in squad(own)["paragraphs"]] if task == "qa_1"
            else [f"{key}: {''.join(hotpot(own)[f'para_{key.lower()}'])}" for key in "AB"]
        )
        texts = [document.strip() for document in documents]
        said = re.compile(rf"{sample.answers[0]}\b")
        there = [text for text in texts if text in wanted]
        assert sum(bool(said.search(text)) for text in texts) == 1
        assert any(said.search(text) for text in there)
        assert len(there) >= (1 if task == "qa_1" else 2)
        assert len(set(texts)) == len(texts)


def test_questions_of_the_real_data_are_answered_by_whole_documents(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if REAL is None or not (Path(REAL) / data.SQUAD).is_file():
        pytest.skip("QM_VLLM_DATA does not name a folder with SQuAD and HotpotQA")
    monkeypatch.setenv("QM_VLLM_DATA", REAL)
    paragraphs = {
        part["context"].strip()
        for article in data.json_of(data.SQUAD)["data"] for part in article["paragraphs"]
    }
    for index in range(4):
        for task in ("qa_1", "qa_2"):
            sample = build(task, "report", index, 4096, embedded_tokenizer())
            texts = [t.strip() for t in re.split(r"Document \d+:\n", sample.context)[1:]]
            assert len(texts) > 10
            holds = [text for text in texts if sample.answers[0] in text]
            assert holds
            assert task == "qa_2" or any(text in paragraphs for text in holds)
    with pytest.raises(ValueError, match="take a length below"):
        build("qa_1", "report", 0, 400_000, PlainTokenizer())


def test_splits_share_no_words_texts_and_documents() -> None:
    said: dict[str, dict[str, set[str]]] = {}
    for split in SPLITS:
        some = [built(task, split, index) for task in NAMES for index in range(4)]
        keys = {key for s in some if s.task in NEEDLES for key, _ in notes(s.context)}
        said[split] = {
            "keys": {part for key in keys if WORDS.fullmatch(key) for part in key.split("-")},
            "words": {
                word for s in some if s.task == "cwe" for one in lists(s.context) for word in one
            },
            "variables": {name for s in some if s.task == "vt" for name in values(s.context)},
            "coded": {
                word for s in some if s.task == "fwe"
                for word in s.context.split("\n\n")[1].split() if word != "..."
            },
            "documents": {
                number for s in some if s.task.startswith("qa")
                for number in re.findall(r"x(\d+)", s.context)
            },
        }
    for kind, found in said["tune"].items():
        assert len(found) > 3
        assert not found & said["report"][kind], kind
    for split, other in (SPLITS, SPLITS[::-1]):
        foreign = text_of("essays", other)
        parts = built("niah_single_2", split, 0).context.split("\n\n")[1:-1]
        told = [part for part in parts if len(part) > 80 and " noted for " not in part]
        assert told
        assert not any(part in foreign for part in told)


def test_essays_are_repeated_where_they_end() -> None:
    tokenizer = PlainTokenizer()
    sample = build("niah_single_2", "tune", 0, 90_000, tokenizer)
    assert 90_000 - TOLERANCE <= prompt_length(sample, tokenizer) <= 90_000
    assert len(notes(sample.context)) == 1


@pytest.mark.parametrize(("metric", "said", "answers", "score"), [
    ("all", "They are 1234567, 7654321.", ["1234567", "7654321", "1111111", "2222222"], 0.5),
    ("all", "1. Lantern 2. APPLE", ["lantern", "apple"], 1.0),
    ("all", "ABCDE and nothing else", ["ABCDE", "FGHIJ", "KLMNO", "PQRST", "UVWXY"], 0.2),
    ("all", "none", ["1234567"], 0.0),
    ("any", "It was in the year 1984.", ["1984", "nineteen eighty-four"], 1.0),
    ("any", "edison", ["Thomas Edison", "Edison"], 1.0),
    ("any", "Tesla", ["Thomas Edison", "Edison"], 0.0),
])
def test_scores_by_hand(metric: str, said: str, answers: list[str], score: float) -> None:
    assert match_score(metric, said, answers, answers[0]) == pytest.approx(score)


def test_ruler_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert _tasks([RULER]) == NAMES
    assert _tasks(["vt", "niah_multikey_3"]) == ("vt", "niah_multikey_3")
    assert not set(NAMES) & {*_tasks(["all"])}
    own = {name for name in NAMES if TASKS[name].haystacks == (DATA,)}
    assert own == {"qa_1", "qa_2"}
    assert all(TASKS[name].files == (data.SQUAD, data.HOTPOT) for name in own)
    monkeypatch.setenv("QM_VLLM_DATA", str(tmp_path / "empty"))
    assert _tasks(["fwe"]) == ("fwe",)
    with pytest.raises(UserError, match="QM_VLLM_DATA"):
        _tasks([RULER])
