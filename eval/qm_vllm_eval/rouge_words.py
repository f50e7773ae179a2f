"""What a word is for ROUGE, in every script.

``rouge-score`` knows the words of English alone: runs of a-z and 0-9. Texts in other scripts have
none of these, and a perfect summary scores 0. :class:`Words` gives the same words for Latin
script, so that scores of English texts stay what the literature has; and beside them

- each Chinese, Japanese or Korean character, since words are not set apart there;
- each run of letters, digits and marks of any other script (Greek, Cyrillic, Arabic, Devanagari).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from itertools import groupby
from typing import Any

NAME = "qm_vllm_eval.rouge_words.Words"
"""How results call this tokenizer."""

_CJK = (
    "CJK UNIFIED", "CJK COMPATIBILITY IDEOGRAPH", "IDEOGRAPHIC ITERATION", "IDEOGRAPHIC NUMBER",
    "HIRAGANA", "KATAKANA", "HALFWIDTH KATAKANA", "BOPOMOFO", "HANGUL", "HALFWIDTH HANGUL",
)
_LATIN = (
    "LATIN", "MODIFIER LETTER", "FEMININE ORDINAL", "MASCULINE ORDINAL", "MICRO SIGN", "DOUBLE-",
    "SCRIPT SMALL", "SUPERSCRIPT", "SUBSCRIPT",
)
"""Letters at which rouge-score ends a word: accented ones, and those that stand among them."""
_GAP, _ENGLISH, _SINGLE, _OTHER, _MARK = range(5)


class Words:
    """A tokenizer for ``rouge_score.rouge_scorer.RougeScorer(tokenizer=...)``."""

    def __init__(self, *, stem: bool) -> None:
        """``stem``: cut English words of more than three characters to their stems (Porter)."""
        from rouge_score.tokenizers import DefaultTokenizer  # type: ignore[import-untyped]

        self._english: Any = DefaultTokenizer(use_stemmer=stem)

    def tokenize(self, text: str) -> list[str]:
        """The words of a text in lower case, in order; those of English alone are stemmed."""
        found: list[str] = []
        if not text.isascii():
            text = text.lower()
        for english, part in _parts(text):
            found += self._english.tokenize(part) if english else [part]
        return found


def has_word(text: str) -> bool:
    """Whether :class:`Words` finds any word in a text."""
    return any(_kind(character) in (_ENGLISH, _SINGLE, _OTHER) for character in text.lower())


def _parts(text: str) -> Iterator[tuple[bool, str]]:
    """Stretches for rouge-score's own tokenizer (True) and words of other scripts (False)."""
    if text.isascii():
        yield True, text
        return
    kind = _GAP

    def kind_of(character: str) -> int:
        nonlocal kind
        found = _kind(character)
        # A vowel sign belongs to the letter before it; an accent ends an English word.
        kind = (_OTHER if kind == _OTHER else _GAP) if found == _MARK else found
        return kind

    for held, characters in groupby(text, kind_of):
        if held == _SINGLE:
            yield from ((False, character) for character in characters)
        elif held == _OTHER:
            yield False, "".join(characters)
        elif held == _ENGLISH:
            yield True, "".join(characters)


@lru_cache(maxsize=65536)
def _kind(character: str) -> int:
    if character.isascii():
        return _ENGLISH if character.isalnum() else _GAP
    category, name = unicodedata.category(character), unicodedata.name(character, "")
    if category[0] == "M":
        return _MARK
    if name.startswith(_CJK) and category[0] in "LN":
        return _SINGLE
    if category[0] == "L" and not name.startswith(_LATIN):
        return _OTHER
    return _OTHER if category == "Nd" else _GAP
