"""A sample as token ids: what may be compressed, what stands behind it, what should follow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qm_vllm_eval.sample import Sample

_SENTINEL = "QMVLLMCONTEXTHERE"
_PLAIN_TAIL = "\n\n"  # between question and reply where the tokenizer has no chat template


@dataclass(frozen=True, eq=False)
class Prompt:
    """A sample in tokens, as an engine runs it.

    Attributes:
        ids: the N prompt tokens. context: how many of them come before the question.
        target: the tokens whose likelihood is measured.
        bare: the prompt of the method "none", two tokens or more: the same with an empty context
            and no turns before it, or, for plain text without a question, its last two tokens.
        evidence: positions among ``ids`` of the tokens that tell the answer, where it is known.
    """

    sample: Sample
    ids: list[int]
    context: int
    target: list[int]
    bare: list[int]
    evidence: frozenset[int] = frozenset()

    @classmethod
    def of(cls, sample: Sample, tokenizer: Any) -> Prompt:
        """Tokenise a sample."""
        context, question, target = prompt_parts(sample, tokenizer)
        ids = [*context, *question]
        bare = bare_prompt_ids(sample, tokenizer)
        evidence = evidence_positions(sample, tokenizer)
        return cls(sample, ids, len(context), target, bare if len(bare) > 1 else ids[-2:], evidence)

    @property
    def seen(self) -> int:
        """S, how many of the tokens a method may look at."""
        return len(self.ids) if self.sample.query_visible else self.context

    @property
    def held(self) -> int:
        """How many of these are fed again after compression instead of being stored: 1 or 0."""
        return int(self.seen == len(self.ids))

    @property
    def feed(self) -> list[int]:
        """The tokens fed after a compressed context."""
        return self.ids[self.seen - self.held :]

    def evidence_kept(self, kept: Sequence[int] | None) -> float:
        """Share of the evidence among these positions and the fed ones; NaN if not known."""
        if kept is None or not self.evidence:
            return math.nan
        there = {*kept, *range(self.seen - self.held, len(self.ids))}
        return len(self.evidence & there) / len(self.evidence)


def prompt_parts(sample: Sample, tokenizer: Any) -> tuple[list[int], list[int], list[int]]:
    """The three runs of token ids that make the sample, each tokenised on its own.

    Args:
        tokenizer: a Hugging Face tokenizer; without a chat template the parts are joined plainly.

    Returns:
        Ids of the template's head with the earlier turns, and the context; of the question, the
        template's tail and the first words of the reply (may be empty for plain text); and of the
        target. Plain text begins with the BOS token if the tokenizer adds one.
    """
    head, tail = _frame(sample, tokenizer, sample.turns)
    context = _bos(sample, tokenizer) + _encode(tokenizer, head + sample.context)
    question = _encode(tokenizer, sample.question + tail + sample.answer_prefix)
    return context, question, list(sample.target_ids) or _encode(tokenizer, sample.target)


def evidence_positions(sample: Sample, tokenizer: Any) -> frozenset[int]:
    """Where the tokens of the sample's evidence stand among the prompt's.

    A boundary is found by counting the tokens of what stands before it without its last space,
    which belongs to the next word; where a token spans the boundary it is the neighbour's.
    """
    if not sample.evidence:
        return frozenset()
    head, _ = _frame(sample, tokenizer, sample.turns)
    first = len(_bos(sample, tokenizer))

    def tokens(end: int) -> int:
        return first + len(_encode(tokenizer, head + sample.context[:end].rstrip()))

    return frozenset(
        position for start, end in sample.evidence
        for position in range(tokens(start), tokens(end))
    )


def bare_prompt_ids(sample: Sample, tokenizer: Any) -> list[int]:
    """The prompt with an empty context; never empty itself.

    Where nothing is left (continuation without a BOS token), it is one BOS or, failing that,
    EOS token, so that the target's first token has something to follow.
    """
    head, tail = _frame(sample, tokenizer)
    text = sample.question.lstrip() if sample.chat else sample.question
    ids = _bos(sample, tokenizer) + _encode(tokenizer, head)
    ids += _encode(tokenizer, text + tail + sample.answer_prefix)
    if ids:
        return ids
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return [int(token)]
    raise ValueError("the tokenizer has neither a BOS nor an EOS token to begin a text with")


def prompt_length(sample: Sample, tokenizer: Any) -> int:
    """Tokens of context and question together: N of the full prompt."""
    context, question, _ = prompt_parts(sample, tokenizer)
    return len(context) + len(question)


def _frame(
    sample: Sample, tokenizer: Any, turns: Sequence[tuple[str, str]] = ()
) -> tuple[str, str]:
    """What the chat template puts before the user's message, the turns included, and behind it."""
    if not sample.chat:
        return "", ""
    if getattr(tokenizer, "chat_template", None) is None:
        return "".join(f"{text}{_PLAIN_TAIL}" for _, text in turns), _PLAIN_TAIL
    messages = [{"role": role, "content": text} for role, text in (*turns, ("user", _SENTINEL))]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    head, found, tail = text.partition(_SENTINEL)
    if not found:
        raise ValueError("the tokenizer's chat template does not show the user's message")
    return head, tail


def _bos(sample: Sample, tokenizer: Any) -> list[int]:
    """The BOS token where the text is plain and the tokenizer puts one in front by itself."""
    if sample.chat and getattr(tokenizer, "chat_template", None) is not None:
        return []
    bos = getattr(tokenizer, "bos_token_id", None)
    return [bos] if bos is not None and list(tokenizer.encode("a"))[:1] == [bos] else []


def _encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False)) if text else []
