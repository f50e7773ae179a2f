"""The questions about real texts: each has its evidence in the right half, and only there."""

from __future__ import annotations

from collections import Counter

import pytest

from qm_vllm_eval import haystacks
from qm_vllm_eval.haystacks import HAYSTACKS, documents, text_of
from qm_vllm_eval.sample import SPLITS
from qm_vllm_eval.tasks import TASKS, build_sample
from qm_vllm_eval.tasks.base import Request, join
from qm_vllm_eval.tasks.question_answering import MOST, Item, evidence, items, locate
from tests.unit.eval.tokenizers import embedded_tokenizer

ITEMS = items()


def needs(name: str) -> None:
    if name not in haystacks.available():
        pytest.skip(f"the texts of {name!r} are not here; scripts/fetch_texts.sh gets them")


def test_there_are_enough_of_each_kind() -> None:
    splits = Counter(item.split for item in ITEMS)
    assert splits["tune"] >= 12
    assert splits["report"] >= 28
    kinds = Counter((item.haystack, item.split) for item in ITEMS)
    assert set(kinds) == {(name, split) for name in HAYSTACKS for split in SPLITS}
    assert min(kinds.values()) >= 4
    assert len({item.question for item in ITEMS}) == len(ITEMS)


@pytest.mark.parametrize("item", ITEMS, ids=[item.question[:40] for item in ITEMS])
def test_evidence_stands_in_the_text(item: Item) -> None:
    assert len(item.marker.split()) < 15
    needs(item.haystack)
    assert text_of(item.haystack, item.split).count(item.marker) == 1
    other = SPLITS[item.split == SPLITS[0]]
    assert item.marker not in text_of(item.haystack, other)
    number, _ = locate(item)
    task = TASKS["question_answering"]
    request = Request(task, 2048, item.split, 0, embedded_tokenizer(), item.haystack)
    passage = join(evidence(item, request))
    assert item.marker in passage
    assert all(answer in passage for answer in item.answers)
    assert 45 <= request.count(passage) <= MOST
    text = " ".join(documents(item.haystack, item.split)[number].text.split())
    assert " ".join(passage.split()) in text
    assert item.answers[0].lower() not in item.question.lower()


@pytest.mark.parametrize("name", HAYSTACKS)
@pytest.mark.parametrize("split", SPLITS)
def test_answer_is_in_the_evidence_alone(name: str, split: str) -> None:
    needs(name)
    own = [item for item in ITEMS if (item.haystack, item.split) == (name, split)]
    for index, item in enumerate(own):
        sample = build_sample(
            "question_answering",
            length=1024,
            split=split,
            index=index,
            tokenizer=embedded_tokenizer(),
            haystacks=(name,),
        )
        assert sample.answers == item.answers
        assert sample.question == f"\n\nQuestion: {item.question} Answer in a few words."
        marked = sample.context.index(item.marker)
        around = sample.context[max(marked - 700, 0) : marked + 700]
        assert item.answers[0] in around
        outside = sample.context.replace(around, " ").split()
        assert item.answers[0] not in outside
