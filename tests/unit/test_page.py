"""The inspection page: escaping, states, counts, no outside references."""

from __future__ import annotations

import re

import pytest

from qm_vllm.cli.inspect import token_texts
from qm_vllm.cli.page import build_page, shade, token_states, visible


def page_input(**changes):
    data = {
        "tokens": ["<b>", " &", "\n", "end"],
        "kept": [True, False, False, True],
        "scores": [1.0, 0.5, 0.0, 0.25],
        "groups": [0, 0, -1, 1],
        "protected": [True, False, False, False],
        "report": {"kv_blocks": 2, "block_size": 32, "kv_bytes": 3 * 2**20, "saliency": "query"},
    }
    return data | changes


def test_text_is_escaped_and_line_ends_are_seen():
    page = build_page(page_input(title="a <i> title"))
    assert "&lt;b&gt;</span>" in page
    assert "> &amp;</span>" in page
    assert "<i>⏎</i>\n</span>" in page
    assert "a &lt;i&gt; title" in page
    assert "<i> title" not in page


def test_every_token_has_state_shade_and_hint():
    page = build_page(page_input())
    main = page[page.index("<main") : page.index("</main>")]
    assert re.findall(r'<span class="([^"]+)"', main) == ["k h10 p", "m h5", "d h0", "k h2"]
    assert 'title="token 0 · score 1.000 · group 0 · kept · protected"' in main
    assert 'title="token 2 · score 0.000 · no group · dropped"' in main


def test_a_character_of_several_tokens_is_one_cell():
    page = build_page(page_input(tokens=["<b>", "👨", None, "end"]))
    main = page[page.index("<main") : page.index("</main>")]
    assert re.findall(r'<span class="([^"]+)" title="[^"]+">([^<]*)', main) == [
        ("k h10 p", "&lt;b&gt;"), ("m h5", "👨"), ("k h2", "end"),
    ]
    assert "token 1 · score 0.500 · group 0 · merged; token 2 · score 0.000" in main
    assert "<dt>Tokens</dt><dd>4</dd>" in page


class Bytes:
    """A tokenizer with a token for each byte."""

    def decode(self, ids):
        return bytes(ids).decode("utf-8", errors="replace")


@pytest.mark.parametrize(("text", "cells"), [
    (b"a\xc3\xa9b", ["a", "é", None, "b"]),
    ("👩‍👧".encode(), ["👩", *[None] * 3, "\u200d", *[None] * 2, "👧", *[None] * 3]),
    (b"\xffab", ["\ufffd", "a", "b"]),
    (b"ok\xf0\x9f\x91", ["o", "k", "\ufffd", "\ufffd", "\ufffd"]),
])
def test_texts_of_tokens_are_whole_characters(text, cells):
    assert token_texts(Bytes(), list(text)) == cells


def test_counts_are_those_of_the_data():
    page = build_page(page_input())
    for name, value in (
        ("Tokens", "4"),
        ("Kept", "2 (50%)"),
        ("Protected", "1"),
        ("KV blocks", "2 × 32 tokens"),
        ("KV cache", "3.00 MiB"),
        ("Saliency", "query"),
    ):
        assert f"<dt>{name}</dt><dd>{value}</dd>" in page
    assert "anchor, in the KV cache (2)" in page
    assert "anchor (1)" in page
    assert "nothing of it is left (1)" in page


def test_figures_that_the_report_lacks_are_left_out():
    page = build_page(page_input(report={}))
    assert "KV blocks" not in page
    assert "Gamma" not in page


def test_page_refers_to_no_other_file():
    page = build_page(page_input())
    assert not re.search(r"(src|href)=|https?://|url\(|@import", page)
    assert "prefers-color-scheme:dark" in page


def test_an_empty_prompt_gives_a_page():
    page = build_page(
        {"tokens": [], "kept": [], "scores": [], "groups": [], "protected": [], "report": {}}
    )
    assert "<dt>Tokens</dt><dd>0</dd>" in page


def test_lists_of_another_length_are_refused():
    with pytest.raises(ValueError, match="scores has 1 entries for 4 tokens"):
        build_page(page_input(scores=[1.0]))


def test_states():
    assert token_states([True, False, False], [0, 0, -1]) == ["kept", "merged", "dropped"]


@pytest.mark.parametrize(("score", "step"), [(-1, 0), (0, 0), (0.44, 4), (1, 10), (7, 10)])
def test_shade_is_clipped(score, step):
    assert shade(score) == step


def test_visible_joins_kinds_of_line_end():
    assert visible("a\r\nb\r") == "a<i>⏎</i>\nb<i>⏎</i>\n"
