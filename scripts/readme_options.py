#!/usr/bin/env python3
"""Writes the README's tables of options from their declarations.

    .venv/bin/python scripts/readme_options.py            # writes them
    .venv/bin/python scripts/readme_options.py --check    # exit code 1 if they are not up to date
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from qm_vllm.config import OPTIONS
from qm_vllm.options import Option, Setter
from qm_vllm.presets import PRESET

README = Path(__file__).parents[1] / "README.md"
FIRST = "<!-- options: written by scripts/readme_options.py -->"
LAST = "<!-- options: end -->"
HEADINGS = {
    Setter.REQUEST: "Every request may set:",
    Setter.RESEARCH: (
        "For research. Offline requests may set them; requests over HTTP where the server was "
        "started with their\nnames or `all` in `--allow-options`, else they get HTTP 400:"
    ),
    Setter.ENGINE: "Set when the engine starts, and fixed from then on:",
}


def tables() -> str:
    """All tables, one for each kind of option."""
    parts = []
    for by, heading in HEADINGS.items():
        options = [one for one in (*OPTIONS.values(), PRESET) if one.by is by]
        parts.append(f"{heading}\n\n{table(options)}")
    return "\n\n".join(parts)


def table(options: Iterable[Option]) -> str:
    """One Markdown table."""
    rows = [f"| `{o.name}` | {o.default_text} | {in_code(o.help)} |" for o in options]
    return "\n".join(["| option | default | meaning |", "|---|---|---|", *rows])


def in_code(text: str) -> str:
    """A sentence with the names of options and lists marked as code."""
    names = "|".join(name for name in OPTIONS if "_" in name)
    return re.sub(rf"(?<!`)(\b(?:{names})\b|\[\[.*?\]\])", r"`\1`", text)


def updated(text: str) -> str:
    """The README with the tables of now between the two marks.

    Raises:
        ValueError: a mark is missing.
    """
    before, rest = text[: text.index(FIRST)], text[text.index(FIRST) :]
    return f"{before}{FIRST}\n{tables()}\n{rest[rest.index(LAST) :]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    text = README.read_text(encoding="utf-8")
    if text == updated(text):
        return 0
    if check:
        print("README.md: options differ; run scripts/readme_options.py", file=sys.stderr)
        return 1
    README.write_text(updated(text), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
