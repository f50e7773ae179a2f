"""The README's tables of options are those of the declarations."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from qm_vllm.config import OPTIONS

FOLDER = Path(__file__).parents[2]
script = runpy.run_path(str(FOLDER / "scripts" / "readme_options.py"))


def test_the_readme_is_up_to_date():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert text == script["updated"](text), "run scripts/readme_options.py"


def test_every_option_stands_in_one_row():
    rows = [line for line in script["tables"]().splitlines() if line.startswith("| `")]
    assert sorted(row.split("`")[1] for row in rows) == sorted([*OPTIONS, "preset"])
    assert all(row.count(" | ") == 2 for row in rows)


def test_only_what_stands_between_the_marks_changes():
    first, last = script["FIRST"], script["LAST"]
    changed = script["updated"](f"above\n{first}\nold\n{last}\nbelow\n")
    assert changed == f"above\n{first}\n{script['tables']()}\n{last}\nbelow\n"
    with pytest.raises(ValueError, match="substring"):
        script["updated"]("no marks")
