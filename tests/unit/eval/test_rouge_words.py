"""Words of every script: those of rouge-score for Latin, and a score for all the others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer

from qm_vllm_eval.match import match_score
from qm_vllm_eval.rouge import METRICS, as_lines, rouge
from qm_vllm_eval.rouge_words import Words, has_word

LATIN = st.text(st.one_of(
    st.characters(max_codepoint=0x24F, exclude_categories=["Cs"]),
    st.sampled_from("\u2018\u2019\u201c\u201d\u2013\u2014\u2026\u0301\u1e9e\ufb01\u20ac"),
), max_size=60)  # fmt: skip


@given(LATIN, st.booleans())
def test_words_in_latin_script_are_those_of_rouge_score(text: str, stem: bool) -> None:
    assert Words(stem=stem).tokenize(text) == DefaultTokenizer(use_stemmer=stem).tokenize(text)


def test_scores_of_english_texts_are_unchanged() -> None:
    said = "The governess, Mlle. Bront\u00eb\u2019s fianc\u00e9e, was running \u2014 na\u00efvely."
    wanted = "Mlle. Bront\u00eb, the governess, ran na\u00efvely to her fianc\u00e9."
    lines = (as_lines(wanted), as_lines(said))
    theirs = RougeScorer(list(METRICS), use_stemmer=True).score(*lines)
    assert rouge(said, [wanted]) == {m: theirs[m].fmeasure for m in METRICS}


@pytest.mark.parametrize(
    "text",
    [
        "他去了北京。他很高兴！",
        "彼は東京へ行った。カメラを買った。",
        "그는 서울에 갔다. 그는 기뻤다.",
        "Он уехал в Москву. Он был рад.",
        "Πήγε στην Αθήνα. Ήταν χαρούμενος.",
        "ذهب إلى القاهرة. كان سعيدا.",
        "הוא נסע לירושלים. הוא שמח.",
        "वह दिल्ली गया। वह खुश था।",
        "เขาไปกรุงเทพ เขามีความสุข",
        "Ուրախ էր նա շատ",
        "他在 2024 年用 vLLM 0.32 写了 KV 缓存。",
    ],
)
def test_a_perfect_summary_scores_one_in_every_script(text: str) -> None:
    assert rouge(text, [text]) == dict.fromkeys(METRICS, 1.0)
    assert match_score("rouge_l", text, [], text) == 1.0
    assert rouge("entirely other words", [text])["rouge1"] == 0.0
    assert rouge("", [text])["rouge1"] == 0.0


def test_chinese_by_hand() -> None:
    # Four of five characters, in order: two pairs of four.
    scores = rouge("我爱吃面", ["我很爱吃面"])
    assert scores["rouge1"] == pytest.approx(2 * 1.0 * 0.8 / 1.8)
    assert scores["rouge2"] == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))
    assert scores["rougeL"] == pytest.approx(2 * 1.0 * 0.8 / 1.8)
    # Sentences in the other order: ROUGE-Lsum finds both.
    scores = rouge("她走了。他来。", ["他来。她走了。"])
    assert scores["rougeLsum"] == 1.0
    assert scores["rougeL"] < 1.0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("北京 is big", ["北", "京", "is", "big"]),
        ("Привет, мир!", ["привет", "мир"]),
        ("हिन्दी", ["हिन्दी"]),
        ("カメラー 々", ["カ", "メ", "ラ", "ー", "々"]),
        ("서울", ["서", "울"]),
        ("٣ كتب", ["٣", "كتب"]),
        ("vLLM缓存KV", ["vllm", "缓", "存", "kv"]),
        ("\U0001f600 \u2026 !", []),
        ("\U00020000\U00020001", ["\U00020000", "\U00020001"]),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert Words(stem=False).tokenize(text) == words


@given(st.text(max_size=60))
def test_any_text_has_words_or_none(text: str) -> None:
    found = Words(stem=True).tokenize(text)
    assert all(word and not word.isspace() for word in found)
    assert has_word(text) == bool(found)
