"""Every task in every split: the same in any process, of the right length, with its answer."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter
from functools import lru_cache
from pathlib import Path

import pytest

from qm_vllm_eval.haystacks import available, text_of
from qm_vllm_eval.prompt import bare_prompt_ids, prompt_length, prompt_parts
from qm_vllm_eval.sample import METRICS, SPLITS, Sample
from qm_vllm_eval.tasks import RULER, TASKS, UnknownTask, build_sample
from qm_vllm_eval.tasks.base import DATA, TOLERANCE, WORDS
from tests.unit.eval.tokenizers import PlainTokenizer, embedded_tokenizer

BOTH = pytest.mark.parametrize("split", SPLITS)
EACH = pytest.mark.parametrize(
    "task",
    [
        name for name, task in TASKS.items()
        if task.haystacks != (DATA,) and task.family != RULER  # test_ruler.py has those
    ],
)
ONCE = ("needle_digits", "frequent_words", "recall", "copy_edit", "continuation")


@lru_cache(maxsize=512)
def built(task: str, split: str, index: int, length: int = 768) -> Sample:
    return build_sample(
        task,
        length=length,
        split=split,
        index=index,
        tokenizer=embedded_tokenizer(),
        haystacks=available(),
    )


@EACH
@BOTH
def test_equal_arguments_give_equal_samples(task: str, split: str) -> None:
    first = built(task, split, 1)
    assert built.__wrapped__(task, split, 1) == first
    assert built(task, split, 2).context != first.context
    assert first.sample_id == f"{task}-768-{split}-1"


def digest() -> str:
    """Of a few essay samples with the tiny tokenizer, which takes no time to import."""
    samples = [
        build_sample(
            task,
            length=512,
            split="report",
            index=4,
            tokenizer=PlainTokenizer(),
            haystacks=("essays",),
        )
        for task in ONCE
    ]
    return hashlib.sha256(repr(samples).encode()).hexdigest()


def test_samples_are_equal_in_another_process() -> None:
    code = "from tests.unit.eval.test_tasks import digest; print(digest())"
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    there = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(__file__).parents[3],
        check=True,
    )
    assert there.stdout.strip() == digest()


@EACH
@BOTH
@pytest.mark.parametrize("length", [768, 2048])
def test_length_is_met(task: str, split: str, length: int) -> None:
    for index in range(4):
        found = prompt_length(built(task, split, index, length), embedded_tokenizer())
        assert length - TOLERANCE <= found <= length


@EACH
def test_shortest_and_longest(task: str) -> None:
    shortest = TASKS[task].minimum
    assert shortest <= 320
    for length in (shortest, 8192):
        found = prompt_length(built(task, "report", 0, length), embedded_tokenizer())
        assert length - TOLERANCE <= found <= length
    with pytest.raises(ValueError, match=f"at least {shortest}"):
        built(task, "report", 0, shortest - 1)


@EACH
@BOTH
def test_answers_are_in_the_context_and_the_question_is_not(task: str, split: str) -> None:
    for index in range(6):
        sample = built(task, split, index)
        target_ids = prompt_parts(sample, embedded_tokenizer())[2]
        assert sample.metric == TASKS[task].metric
        assert sample.metric in METRICS
        assert sample.family == TASKS[task].family
        assert sample.target.startswith(" ")
        assert sample.target == sample.target.rstrip()
        if task == "continuation":
            assert (sample.question, sample.max_new_tokens, len(target_ids)) == ("", 0, 128)
            assert sample.target.strip() not in sample.context
            continue
        assert all(answer in sample.context for answer in sample.answers)
        assert all(answer in sample.target for answer in sample.answers[:1])
        if sample.chat:
            assert sample.question.startswith("\n\n")
            assert sample.question.strip() not in sample.context
            assert not any(answer in sample.question for answer in sample.answers)
            assert sample.answer_prefix
            assert sample.answer_prefix == sample.answer_prefix.strip()
            assert len(target_ids) < sample.max_new_tokens
            most = 24 if task == "question_answering" else 1.3 * len(target_ids) + 5
            assert sample.max_new_tokens <= most
        else:
            assert sample.answer_prefix == ""
            assert sample.context.count(sample.question.strip() + sample.target) == 1
            # Scored by the share of tokens that come first: nothing is decoded.
            assert sample.metric == "tokens"
            assert (sample.max_new_tokens, len(target_ids)) == (0, 48)


@EACH
@BOTH
def test_blind_samples_differ_in_flag_and_name_alone(task: str, split: str) -> None:
    seen = built(task, split, 3)
    blind = build_sample(
        task,
        length=768,
        split=split,
        index=3,
        tokenizer=embedded_tokenizer(),
        haystacks=available(),
        query_visible=False,
    )
    assert (blind.query_visible, seen.query_visible) == (False, True)
    assert blind.sample_id == f"{seen.sample_id}-blind"
    for name in ("context", "question", "target", "answers", "answer_prefix", "haystack"):
        assert getattr(blind, name) == getattr(seen, name)


@pytest.mark.parametrize("task", ["needle_digits", "recall", "copy_edit"])
def test_context_comes_from_its_own_half(task: str) -> None:
    for split, other in (SPLITS, SPLITS[::-1]):
        sample = built(task, split, 0)
        said = [p for p in sample.context.split("\n\n")[1:-1] if len(p) > 80 and "secret" not in p]
        foreign = text_of(sample.haystack, other)
        assert not any(paragraph in foreign for paragraph in said)


@EACH
def test_haystack_turns_with_the_index(task: str) -> None:
    names = [built(task, "tune", index).haystack for index in range(6)]
    if TASKS[task].haystacks == (WORDS,):
        assert set(names) == {WORDS}
    else:
        assert names == [available()[index % len(available())] for index in range(6)]


def test_needles_are_spread_over_the_depth() -> None:
    depths = []
    for index in range(20):
        sample = built("needle_digits", "tune", index)
        depths.append(sample.context.index(sample.answers[0]) / len(sample.context))
    quarters = Counter(min(int(depth * 4), 3) for depth in depths)
    assert min(quarters[i] for i in range(4)) >= 3


@BOTH
def test_frequencies_are_as_asked(split: str) -> None:
    for index in range(3):
        sample = built("frequent_words", split, index)
        words = sample.context.split(": ")[1].rstrip(".").split()
        assert [word for word, _ in Counter(words).most_common(3)] == list(sample.answers)
        sample = built("common_words", split, index)
        words = sample.context.split(": ")[1].rstrip(".").split(", ")
        counts = Counter(words)
        assert {word for word, _ in counts.most_common(4)} == set(sample.answers)
        rest = max(count for word, count in counts.items() if word not in sample.answers)
        assert min(counts[word] for word in sample.answers) > 2 * rest
        assert sorted(sample.answers, key=words.index) == list(sample.answers)


@BOTH
def test_tracked_variables_are_those_of_the_chain(split: str) -> None:
    sample = built("variable_tracking", split, 0)
    value = sample.question.split("value ")[1].split(",")[0]
    held = {}
    for part in sample.context.split("VAR ")[1:]:
        name, _, source = part.partition(" = ")
        source = source.split(".")[0] if source.startswith(tuple("0123456789")) else source
        if source.strip():
            held[name.strip()] = source
    names = [n for n, source in held.items() if source == value]
    assert names == [sample.answers[0]]
    assert len(sample.answers) in (4, 5)


def test_marked_sentences_are_the_target() -> None:
    sample = built("copy_edit", "report", 0)
    assert sample.context.count("KEY POINT:") == len(sample.answers) == 2
    places = [sample.context.index(f"KEY POINT: {answer}") for answer in sample.answers]
    assert places == sorted(places)
    assert sample.target == " " + " ".join(sample.answers)


def test_parts_are_the_rendered_prompt() -> None:
    tokenizer = embedded_tokenizer()
    sample = built("needle_fact", "report", 1)
    context, question, target = prompt_parts(sample, tokenizer)
    message = [{"role": "user", "content": sample.context + sample.question}]
    text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(context + question) == text + sample.answer_prefix
    assert tokenizer.decode(target) == sample.target
    bare = tokenizer.decode(bare_prompt_ids(sample, tokenizer))
    assert bare == text.replace(sample.context + "\n\n", "") + sample.answer_prefix


def test_parts_without_a_chat_template() -> None:
    tokenizer = PlainTokenizer()
    for task in ("needle_digits", "recall", "continuation"):
        sample = build_sample(
            task, length=300, split="tune", index=0, tokenizer=tokenizer, haystacks=("essays",)
        )
        context, question, target = prompt_parts(sample, tokenizer)
        assert context[0] == 1
        assert context.count(1) == 1
        assert 300 - TOLERANCE <= len(context) + len(question) <= 300
        assert 1 not in question + target
        bare = bare_prompt_ids(sample, tokenizer)
        assert bare[0] == 1
        assert len(bare) == 1 + len(question)
        assert bare[2:] == question[1:]  # in a chat, the question loses its blank line


def test_bare_prompt_is_never_empty() -> None:
    sample = built("continuation", "tune", 0)
    tokenizer = embedded_tokenizer()
    assert bare_prompt_ids(sample, tokenizer) == [tokenizer.bos_token_id]


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(UnknownTask, match="needle_digits"):
        built("poetry", "tune", 0)
    with pytest.raises(ValueError, match="there are tune"):
        built("recall", "train", 0)
    with pytest.raises(ValueError, match="index"):
        built("recall", "tune", -1)
    with pytest.raises(ValueError, match="poems"):
        build_sample(
            "recall",
            length=512,
            split="tune",
            index=0,
            tokenizer=embedded_tokenizer(),
            haystacks=("poems",),
        )
