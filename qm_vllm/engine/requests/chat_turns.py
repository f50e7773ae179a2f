"""Finds the turns of a conversation in its token ids, by the marks of the model's chat template.

The template is rendered once, with words of our own as messages; what it puts between them is
what begins a turn. So a prompt that was rendered elsewhere (offline, by a client) is understood
as well, and nothing has to travel with a request.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from itertools import compress
from typing import Any

from qm_vllm.turns import Turn

WORDS = {"system": "QMALPHA", "user": "QMBETA", "assistant": "QMGAMMA", "again": "QMDELTA"}
TALK = (("system", "system"), ("user", "user"), ("assistant", "assistant"), ("user", "again"))


class ChatTurns:
    """The marks of one chat template; :meth:`find` reads a prompt.

    Attributes:
        marks: token ids that begin a turn, and its role. Empty: :attr:`problem` says why.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.marks: dict[tuple[int, ...], str] = {}
        self.problem: str | None = None
        self._tokenizer, self._by_first = tokenizer, dict[int, list[tuple[int, ...]]]()
        self._special = frozenset(getattr(tokenizer, "all_special_ids", ()))
        if not getattr(tokenizer, "chat_template", None):
            self.problem = "the model has no chat template"
            return
        try:
            self._learn()
            if "user" not in self.marks.values():
                self.problem = "the chat template has no special tokens between turns"
        except Exception as error:  # a template is a program of the model's maker
            self.problem = f"the chat template fails: {type(error).__name__}: {error}"

    def find(self, token_ids: Sequence[int]) -> list[Turn]:
        """All turns in their order, each up to the next one's mark; [] where there are none."""
        begins: list[tuple[str, int]] = []
        inside = 0  # end of the last mark
        for position in places(token_ids, self._by_first):
            for mark in self._by_first[token_ids[position]] if position >= inside else ():
                if tuple(token_ids[position : position + len(mark)]) == mark:
                    begins.append((self.marks[mark], position))
                    inside = position + len(mark)
                    break
        ends = [*(start for _, start in begins), len(token_ids)][1:]
        return [(role, start, end) for (role, start), end in zip(begins, ends, strict=True)]

    def _learn(self) -> None:
        try:
            between = _between(self._tokenizer, TALK)
        except Exception:  # some templates refuse a system message
            between = {}
        first = "system"
        if not self._mark(between.get("user", "")):  # or put it into the user's
            between, first = _between(self._tokenizer, TALK[1:]), "user"
        for role, name in TALK:
            text = between.get(name, "")
            self._add(role, _up_to(role, text) if name == first else text)
        alone = _between(self._tokenizer, TALK[1:2]).get("user", "")
        if not any(role == "user" for role, _, _ in self.find(self._mark(alone))):
            self._add("user", alone)

    def _add(self, role: str, text: str) -> None:
        mark = self._mark(text)
        if mark and mark not in self.marks:
            self.marks[mark] = role
            same = self._by_first.setdefault(mark[0], [])
            same.append(mark)
            same.sort(key=len, reverse=True)

    def _mark(self, text: str) -> tuple[int, ...]:
        """Its ids without BOS; () unless it begins with a special token, as no word can."""
        ids = list(self._tokenizer.encode(text.rstrip(), add_special_tokens=False))
        bos = getattr(self._tokenizer, "bos_token_id", None)
        while len(ids) > 1 and ids[0] == bos and ids[1] in self._special:
            del ids[0]
        return tuple(ids) if ids and ids[0] in self._special else ()


def places(token_ids: Sequence[int], wanted: Container[int]) -> list[int]:
    """Where a prompt holds wanted tokens; the loop over the prompt is not Python's."""
    return list(compress(range(len(token_ids)), map(wanted.__contains__, token_ids)))


def _between(tokenizer: Any, talk: Sequence[tuple[str, str]]) -> dict[str, str]:
    """What the template puts before each message; {} if it does not show all, in order."""
    messages = [{"role": role, "content": WORDS[name]} for role, name in talk]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)
    found: dict[str, str] = {}
    for _, name in talk:
        before, word, text = text.partition(WORDS[name])
        if not word:
            return {}
        found[name] = before
    return found


def _up_to(role: str, text: str) -> str:
    """The head of a prompt up to the role's name; what follows may be a date or a default."""
    start = text.find(role)
    return text if start < 0 else text[:start] + text[start:].split(maxsplit=1)[0]
