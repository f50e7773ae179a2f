"""``python -m qm_vllm_eval.published [--check]``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from qm_vllm_eval.published.blocks import rewritten
from qm_vllm_eval.published.catalogue import block, value
from qm_vllm_eval.published.form import Unknown
from qm_vllm_eval.published.stored import ROOT

PAGES = ("*.md", "docs/*.md", "benchmarks/*.md", "eval/**/*.md")


def pages(root: Path) -> list[Path]:
    """All pages of a checkout that may hold figures."""
    return sorted({page for pattern in PAGES for page in root.glob(pattern)})


def different(root: Path, *, write: bool) -> list[str]:
    """Pages that do not say what the result files say, rewritten if asked for.

    Raises:
        Unknown: a page asks for what there is not; the sentence names the page.
    """
    found = []
    for page in pages(root):
        text = page.read_text(encoding="utf-8")
        name = page.relative_to(root).as_posix()
        try:
            wanted = rewritten(text, block, value)
        except Unknown as error:
            raise Unknown(f"{name}: {error}") from None
        if wanted != text:
            found.append(name)
            if write:
                page.write_text(wanted, encoding="utf-8")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 if all pages say what the files say (now)."""
    parser = argparse.ArgumentParser(prog="python -m qm_vllm_eval.published",
                                     description="Figures of the pages, from the result files.")
    parser.add_argument("--check", action="store_true", help="change nothing, say what differs")
    options = parser.parse_args(arguments)
    if not pages(ROOT):
        print(f"{ROOT} is no checkout: there are no pages to write", file=sys.stderr)
        return 2
    try:
        found = different(ROOT, write=not options.check)
    except Unknown as error:
        print(error, file=sys.stderr)
        return 2
    for name in found:
        print(f"{name}: {'differs' if options.check else 'written'}")
    return 1 if options.check and found else 0


if __name__ == "__main__":
    raise SystemExit(main())
