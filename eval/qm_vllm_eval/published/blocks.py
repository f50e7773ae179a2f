"""Generated parts of a page: where they are, and how they are written anew."""

from __future__ import annotations

import re
from collections.abc import Callable

from qm_vllm_eval.published.form import Unknown

BEGIN, END = "<!-- begin generated: {name} -->", "<!-- end generated -->"
_BLOCK = re.compile(
    r"(?P<begin><!-- begin generated: (?P<name>[^>]+?) -->)\n(?P<body>.*?)(?P<end>"
    r"<!-- end generated -->)", re.DOTALL,
)
_VALUE = re.compile(r"<!-- v:(?P<name>[^>]+?) -->(?P<said>[^<]*)<!-- /v -->")
_MARKS = (("<!-- begin generated", _BLOCK), ("<!-- end generated", _BLOCK),
          ("<!-- v:", _VALUE), ("<!-- /v", _VALUE))
Maker = Callable[[str], str]


def rewritten(text: str, block: Maker, value: Maker) -> str:
    """The page with every generated part made anew.

    Args:
        block, value: what stands in the part of a name.

    Raises:
        Unknown: a mark without its partner, or a name that has no figures.
    """
    for mark, pattern in _MARKS:
        if text.count(mark) != len(pattern.findall(text)):
            raise Unknown(f"a mark without its partner: '{mark}'")

    def table(found: re.Match[str]) -> str:
        return f"{found['begin']}\n{block(found['name']).strip()}\n{found['end']}"

    def inline(found: re.Match[str]) -> str:
        return f"<!-- v:{found['name']} -->{value(found['name'])}<!-- /v -->"

    return _VALUE.sub(inline, _BLOCK.sub(table, text))


def names(text: str) -> list[str]:
    """Names of all generated parts of a page, tables first."""
    return [found["name"] for kind in (_BLOCK, _VALUE) for found in kind.finditer(text)]
