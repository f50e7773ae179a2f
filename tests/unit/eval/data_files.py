"""Small files of the form of published data, whose documents can be told apart by their words."""

from __future__ import annotations

import random
from pathlib import Path


def prose(document: int, words: int, seed: int = 0) -> str:
    """Sentences of long words; each word ends with the number of its document."""
    rng = random.Random(f"{document}-{seed}")
    said = [
        "".join(rng.choice("bdfgklmn") + rng.choice("aeiou") for _ in range(4)) + f"x{document}"
        for _ in range(words)
    ]
    runs = [said[i : i + 9] for i in range(0, words, 9)]
    return " ".join(" ".join(run).capitalize() + "." for run in runs)


def write(folder: Path, name: str, text: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")


def squad(document: int) -> dict:
    return {"title": str(document), "paragraphs": [
        {
            "context": f"{prose(document, 60, part)} The key{part}x{document} was found.",
            "qas": [{
                "question": "What was found?", "answers": [{"text": f"key{part}x{document}"}],
            }],
        }
        for part in range(5)
    ]}


def hotpot(document: int) -> dict:
    return {
        "question": "What was found?", "answer": f"keyx{document}",
        "title_a": "A", "para_a": [prose(document, 40, 1), f" The keyx{document} was found."],
        "title_b": "B", "para_b": [prose(document, 40, 2)],
        "distractors": [["C", [prose(document, 80, part)], []] for part in range(3, 11)],
    }
