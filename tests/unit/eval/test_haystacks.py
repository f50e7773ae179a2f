"""The prose: two halves without a common paragraph, passages of the size asked for."""

from __future__ import annotations

import random

import pytest

from qm_vllm.assets import packages
from qm_vllm_eval import haystacks
from qm_vllm_eval.haystacks import HAYSTACKS, HaystackError, documents, passage, text_of
from qm_vllm_eval.sample import SPLITS


def needs(name: str) -> None:
    if name not in haystacks.available():
        pytest.skip(f"the texts of {name!r} are not here; scripts/fetch_texts.sh gets them")


def words(text: str) -> int:
    return len(text.split())


@pytest.mark.parametrize("name", HAYSTACKS)
def test_halves_share_no_document_and_no_paragraph(name: str) -> None:
    needs(name)
    tune, report = (documents(name, split) for split in SPLITS)
    assert not {d.name for d in tune} & {d.name for d in report}
    paragraphs = [{p for d in half for p in d.paragraphs} for half in (tune, report)]
    assert not paragraphs[0] & paragraphs[1]
    assert min(len(text_of(name, split)) for split in SPLITS) > 250_000


def test_held_out_novels_are_for_reporting_only() -> None:
    held_out = {"persuasion", "northanger_abbey", "moby_dick"}
    assert held_out == set(haystacks.NOVELS["report"])
    assert not held_out & set(haystacks.NOVELS["tune"])


@pytest.mark.parametrize("name", HAYSTACKS)
@pytest.mark.parametrize("split", SPLITS)
def test_pieces_make_up_the_documents(name: str, split: str) -> None:
    needs(name)
    for number, document in list(enumerate(documents(name, split)))[:4]:
        joined = "".join(p.joiner + p.text for p in haystacks.pieces_of(name, split, number))
        assert joined.split() == document.text.split()


@pytest.mark.parametrize("name", HAYSTACKS)
def test_passage_is_a_run_of_the_text(name: str) -> None:
    needs(name)
    pieces = passage(name, "report", random.Random(5), 300, words)
    total = sum(words(piece.text) for piece in pieces)
    assert 300 <= total < 300 + words(pieces[-1].text)
    assert pieces[0].joiner == "\n\n"
    squeezed = " ".join(text_of(name, "report").split())
    assert " ".join(" ".join(p.text for p in pieces[:5]).split()) in squeezed


def test_passage_depends_on_the_generator_alone() -> None:
    first, again, other = (
        passage("essays", "tune", random.Random(seed), 200, words) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_passage_leaves_out_documents_and_words() -> None:
    name = documents("essays", "report")[-1].name  # the longest essay by far
    for seed in range(5):
        pieces = passage(
            "essays",
            "report",
            random.Random(seed),
            2000,
            words,
            exclude={name},
            banned={"startup", "Lisp"},
        )
        text = " ".join(piece.text for piece in pieces)
        assert "lisp" not in text.lower().split()
        assert " startup " not in text
        inside = documents("essays", "report")[-1].text
        assert not any(len(p.text) > 60 and p.text in inside for p in pieces)


def test_too_long_a_passage_is_refused() -> None:
    with pytest.raises(HaystackError, match="fewer than"):
        passage("essays", "tune", random.Random(0), 10_000_000, words)


@pytest.mark.parametrize(("name", "split"), [("poems", "tune"), ("essays", "train")])
def test_unknown_names_are_refused(name: str, split: str) -> None:
    with pytest.raises(ValueError, match="there are"):
        documents(name, split)


def test_missing_texts_say_what_to_run(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("QM_VLLM_CACHE", str(tmp_path))
    documents.cache_clear()
    assert haystacks.available() == ("essays",)
    for name in ("novels", "faq"):
        with pytest.raises(HaystackError, match=r"scripts/fetch_texts\.sh"):
            documents(name, "tune")
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    assert haystacks.available() == ()
    with pytest.raises(HaystackError, match="pip install"):
        documents("essays", "tune")
