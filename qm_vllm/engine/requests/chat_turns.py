"""Finds the turns of a conversation in its token ids, by the marks of the model's chat template.

The template is rendered once, with words of our own as messages; what it puts between them is
what begins a turn. So a prompt that was rendered elsewhere (offline, by a client) is understood
as well, and nothing has to travel with a request. Many templates show the result of a tool as a
user's turn that goes on with a mark of its own: the longest mark wins.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from itertools import compress
from typing import Any

from qm_vllm.engine.requests.agent_talks import SCHEMA, TALKS, Sample, forms, lead_of, schemas
from qm_vllm.special_tokens import special_ids
from qm_vllm.turns import Turn
from qm_vllm_patches.log import get_logger

logger = get_logger(__name__)

WORDS = {"system": "QMALPHA", "user": "QMBETA", "assistant": "QMGAMMA", "again": "QMDELTA"}
TALK = (("system", "system"), ("user", "user"), ("assistant", "assistant"), ("user", "again"))

LEAD = 8
"""Tokens of a template's own words by which schemas of tools are known."""


class ChatTurns:
    """The marks of one chat template; :meth:`find` reads a prompt.

    Attributes:
        marks: token ids that begin a turn, and its role: system, user, assistant or tool. Empty:
            :attr:`problem` says why.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.marks: dict[tuple[int, ...], str] = {}
        self.problem: str | None = None
        self._tokenizer, self._by_first = tokenizer, dict[int, list[tuple[int, ...]]]()
        self._special = special_ids(tokenizer)
        self._end_of_answer: int | None = None
        self._leads: set[tuple[int, ...]] = set()
        if not getattr(tokenizer, "chat_template", None):
            self.problem = "the model has no chat template"
            return
        try:
            self._learn()
            if "user" not in self.marks.values():
                self.problem = "the chat template has no special tokens between turns"
        except Exception as error:  # a template is a program of the model's maker
            self.problem = f"the chat template fails: {type(error).__name__}: {error}"
        if self.problem is None:
            self._learn_tools()

    def find(self, token_ids: Sequence[int]) -> list[Turn]:
        """All turns in their order, each up to the next one's mark; [] where there are none.

        Results of tools that follow each other are one turn.
        """
        begins: list[tuple[str, int]] = []
        inside = 0  # end of the last mark
        for position in places(token_ids, self._by_first):
            for mark in self._by_first[token_ids[position]] if position >= inside else ():
                if tuple(token_ids[position : position + len(mark)]) == mark:
                    role, inside = self.marks[mark], position + len(mark)
                    if role != "tool" or not begins or begins[-1][0] != "tool":
                        begins.append((role, position))
                    break
        ends = [*(start for _, start in begins), len(token_ids)][1:]
        return [(role, start, end) for (role, start), end in zip(begins, ends, strict=True)]

    def with_schemas(self, token_ids: Sequence[int], turns: Sequence[Turn]) -> list[Turn]:
        """Those of a prompt's turns in which the template shows schemas of tools.

        Args:
            turns: of :meth:`find`.
        """
        if not turns or not self._leads:
            return []
        ends = [
            place + 1
            for place in places(token_ids, {lead[-1] for lead in self._leads})
            for lead in self._leads
            if tuple(token_ids[max(0, place + 1 - len(lead)) : place + 1]) == lead
        ]
        return [turn for turn in turns if any(turn[1] < end <= turn[2] for end in ends)]

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
            self._add(role, self._mark(_up_to(role, text) if name == first else text))
        self._end_of_answer = next(iter(self._mark(between.get("again", ""))), None)
        alone = _between(self._tokenizer, TALK[1:2]).get("user", "")
        if not any(role == "user" for role, _, _ in self.find(self._mark(alone))):
            self._add("user", self._mark(alone))

    def _learn_tools(self) -> None:
        """Marks of tools' results, of what follows them and of schemas outside the system turn.

        Marks that do not find the turns of the very talks which they were learned from are
        forgotten: then all stays as it is without tools.
        """
        known = dict(self.marks)
        try:
            for before, sample in schemas(self._tokenizer):
                self._try(self._schema_marks(before), [sample])
                self._leads |= {self._lead(before)} - {()}
            for tools in (False, True):
                self._learn_results(tools)
        except Exception as error:  # a tokenizer is not ours, either
            logger.debug("qm_vllm: the chat template's tools are not understood: %s", error)
            self._set(known)

    def _learn_results(self, tools: bool) -> None:
        for talk in TALKS:
            understood = any(
                self._try(self._tool_marks(form), form)
                for form in forms(self._tokenizer, talk, tools=tools)
            )
            if talk == TALKS[0] and not understood:
                return

    def _try(self, marks: Sequence[tuple[str, tuple[int, ...]]], form: Sequence[Sample]) -> bool:
        """Whether the turns of these talks are found with further marks, which else are dropped."""
        known = dict(self.marks)
        for role, mark in marks:
            self._add(role, mark)
        if all(self._finds(sample) for sample in form):
            return True
        self._set(known)
        return False

    def _finds(self, sample: Sample) -> bool:
        """The end of the last question may begin an answer already."""
        turns = self.find(self._encode(sample.text))
        roles = tuple(role for role, _, _ in turns if role != "system")
        wanted = tuple(role for role in sample.roles if role != "system")
        return roles in (wanted, (*wanted, "assistant"))

    def _tool_marks(self, form: Sequence[Sample]) -> list[tuple[str, tuple[int, ...]]]:
        """What begins the turns behind a call: tokens that do not depend on what stands there."""
        found = []
        behind = [role for role, _, _ in form[0].steps].index("tool")
        for step in range(behind, len(form[0].steps)):
            role, word, before = form[0].steps[step]
            if SCHEMA in before:
                continue
            texts = [before.rstrip(), *(sample.steps[step][2] + word for sample in form)]
            # Special tokens in front may belong to a call, so the start that all agree on counts.
            rows = zip(*(self._starts(text) for text in texts), strict=False)
            mark = self._without_bos(max(map(_shared, rows), key=len, default=()))
            if not any(
                old[: len(mark)] == mark or (of == role and mark[: len(old)] == old)
                for old, of in self.marks.items()
            ):
                found.append((role, mark))
        return found

    def _schema_marks(self, before: str) -> list[tuple[str, tuple[int, ...]]]:
        """The special tokens in front of schemas that have a place of their own."""
        starts = self._starts(before)
        ids = self._without_bos(starts[-1]) if starts else ()
        mark = ids[: max(places(ids, self._special), default=-1) + 1]
        if any(ids[: len(old)] == old or old[: len(mark)] == mark for old in self.marks):
            return []
        return [("system", mark)]

    def _lead(self, before: str) -> tuple[int, ...]:
        """Tokens in front of schemas; not those at the edges, which may merge with others."""
        ids = self._encode(lead_of(before))
        first = int(len(ids) > 1 and ids[0] not in self._special)
        end = len(ids) - (len(ids) > 1 and ids[-1] not in self._special)
        return tuple(ids[first:end][-LEAD:])

    def _starts(self, text: str) -> list[tuple[int, ...]]:
        """Ids from where a turn may begin: an answer's end, else special tokens, last first."""
        ids = self._encode(text)
        special = places(ids, self._special)[::-1]
        ends = [place for place in special if ids[place] == self._end_of_answer]
        return [tuple(ids[start:]) for start in ends[:1] or special]

    def _set(self, marks: dict[tuple[int, ...], str]) -> None:
        self.marks, self._by_first = {}, {}
        for mark, role in marks.items():
            self._add(role, mark)

    def _add(self, role: str, mark: tuple[int, ...]) -> None:
        if mark and mark not in self.marks:
            self.marks[mark] = role
            same = self._by_first.setdefault(mark[0], [])
            same.append(mark)
            same.sort(key=len, reverse=True)

    def _mark(self, text: str) -> tuple[int, ...]:
        """Its ids without BOS; () unless it begins with a special token, as no word can."""
        ids = self._without_bos(self._encode(text.rstrip()))
        return ids if ids and ids[0] in self._special else ()

    def _without_bos(self, ids: Sequence[int]) -> tuple[int, ...]:
        bos = getattr(self._tokenizer, "bos_token_id", None)
        while len(ids) > 1 and ids[0] == bos and ids[1] in self._special:
            ids = ids[1:]
        return tuple(ids)

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))


def places(token_ids: Sequence[int], wanted: Container[int]) -> list[int]:
    """Where a prompt holds wanted tokens; the loop over the prompt is not Python's."""
    return list(compress(range(len(token_ids)), map(wanted.__contains__, token_ids)))


def _shared(rows: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
    """What all rows begin with."""
    first, shared = rows[0], 0
    while shared < min(map(len, rows)) and all(row[shared] == first[shared] for row in rows):
        shared += 1
    return first[:shared]


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
