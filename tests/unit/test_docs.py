"""What the pages name exists: links, paths, modules and commands."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"qm_vllm": ROOT, "qm_vllm_patches": ROOT / "patches", "qm_vllm_eval": ROOT / "eval"}
"""Import names, and the folders that they lie in."""
SUFFIXES = (".py", ".sh", ".md", ".toml", ".txt", ".json", ".csv", ".png")
SHORT = {
    "c/": "qm_vllm/compress/", "p/": "qm_vllm/prior/", "k/": "eval/qm_vllm_eval/paper/claims/",
}
"""What docs/paper.md writes for a folder; it says so itself."""
OF_A_RUN = frozenset((
    "config.json", "metrics.json", "history.json", "loss.png", "run_meta.json", "results.csv",
    "families.csv", "tables.md", "report.md", "summary.json", "scaling.json", "predictions.csv",
    "in.jsonl", "claims.json", "tasks.json", "cells.csv", "preprocessor_config.json",
    "tokenizer_config.json", "points.csv", "policies.csv", "training.json", "paired.csv",
))
"""Names of files that a run writes or a model has, wherever that is."""
IN_A_HISTORY = ("CHANGELOG.md",)
"""Pages that also name what there was."""


def pages() -> list[Path]:
    """Markdown files of the repository: those that git knows, or all where there is no git."""
    asked = ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard", "*.md"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return [ROOT / name for name in done.stdout.split("\n") if name and (ROOT / name).is_file()]
    return [page for page in ROOT.rglob("*.md") if ".venv" not in page.parts]


PAGES = pages()
named = pytest.mark.parametrize(
    "page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix()
)


def prose(page: Path) -> str:
    """A page's text without blocks of code and comments."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return re.sub(r"<!--.*?-->", "", text, flags=re.S)


def quoted(page: Path) -> list[str]:
    """Everything in backticks, outside of blocks of code."""
    return re.findall(r"`([^`\n]+)`", prose(page))


def anchors(page: Path) -> set[str]:
    """Names that links may have behind a #: headings as GitHub turns them."""
    found = set()
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            title = re.sub(r"[^\w\- ]", "", line.lstrip("#").strip().lower())
            found.add(title.replace(" ", "-"))
    return found


def module_file(name: str) -> bool:
    """Whether a dotted name is a module of ours, or something that one defines; no import."""
    parts = name.split(".")
    folder = PACKAGES[parts[0]]
    for end in range(len(parts), 0, -1):
        place = folder.joinpath(*parts[:end])
        for file in (place.with_suffix(".py"), place / "__init__.py"):
            if file.is_file():
                rest = parts[end:]
                # A name of a package may come from a table of lazy imports: look for the word.
                return not rest or re.search(rf"\b{re.escape(rest[0])}\b", file.read_text()) \
                    is not None
        if place.is_dir():
            return end == len(parts)
    return False


def commands() -> set[str]:
    """Names behind ``qm-vllm``: those of the program and those of the studies' entry points."""
    main = (ROOT / "qm_vllm" / "cli" / "main.py").read_text(encoding="utf-8")
    own = re.findall(r"^app\.command\(.*?\)\((\w+)\)$", main, flags=re.M)
    studies = tomllib.loads((ROOT / "eval" / "pyproject.toml").read_text(encoding="utf-8"))
    added = studies["project"]["entry-points"]["qm_vllm.commands"]
    return {name.replace("_", "-") for name in own} | set(added)


def evaluations() -> set[str]:
    """Names behind ``qm-vllm eval``."""
    text = (ROOT / "eval" / "qm_vllm_eval" / "cli" / "evaluations.py").read_text(encoding="utf-8")
    return set(re.findall(r"""app\.command\(\s*["']([\w-]+)["']""", text)) | {
        name.replace("_", "-") for name in re.findall(r"app\.command\(.*?\)\((\w+)\)", text)
    }


def test_pages_are_found():
    found = {page.relative_to(ROOT).as_posix() for page in PAGES}
    assert {"README.md", "CHANGELOG.md", "docs/quality.md", "eval/results/README.md"} <= found


@named
def test_relative_links_point_to_files_and_headings(page: Path):
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" in target or target.startswith("mailto:"):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists() or (
            anchor and file.suffix == ".md" and anchor not in anchors(file)
        ):
            wrong.append(target)
    assert not wrong, f"{page.relative_to(ROOT)} links to what there is not: {wrong}"


@named
def test_paths_in_backticks_exist(page: Path):
    if page.name in IN_A_HISTORY:
        pytest.skip("a history")
    wrong = []
    for text in quoted(page):
        name = next((full + text.removeprefix(short) for short, full in SHORT.items()
                     if text.startswith(short) and page.name == "paper.md"), text).split(" ")[0]
        name = name.split("::")[0]
        if "/" not in name.rstrip("/") or not name.endswith((*SUFFIXES, "/")):
            continue
        if re.search(r"[*{}<>$~:]|\.\.\.", name) or name in SHORT:
            continue
        if name.startswith("/") or Path(name).name in OF_A_RUN:
            continue
        bases = (ROOT, page.parent, ROOT / "qm_vllm", ROOT / "tests" / "unit")
        if not any((base / name).exists() for base in bases):
            wrong.append(text)
    assert not wrong, f"{page.relative_to(ROOT)} names files that are not there: {wrong}"


@named
def test_modules_exist(page: Path):
    text = page.read_text(encoding="utf-8")
    names = [t for t in quoted(page) if re.fullmatch(r"(qm_vllm\w*)(\.\w+)+(\(\))?", t)]
    names += re.findall(r"-m (qm_vllm\w*(?:\.\w+)*)", text)
    names += re.findall(r"^(?:from|import) (qm_vllm\w*(?:\.\w+)*)", text, flags=re.M)
    wrong = []
    for name in names:
        plain = name.removesuffix("()")
        if plain.split(".")[0] not in PACKAGES or not (
            module_file(plain) or plain in ("qm_vllm.commands",)
        ):
            wrong.append(name)
    assert not wrong, f"{page.relative_to(ROOT)} names modules that are not there: {wrong}"


@named
def test_commands_exist(page: Path):
    text = page.read_text(encoding="utf-8")
    known, evals = commands(), evaluations()
    assert {"serve", "demo", "train-prior", "compare", "eval"} <= known
    assert {"booksum", "paper-tables"} <= evals
    wrong = [
        name for name in re.findall(r"(?:`|^|bin/)qm-vllm ([a-z][\w-]*)", text, flags=re.M)
        if name not in known
    ]
    wrong += [
        f"eval {name}" for name in re.findall(r"qm-vllm eval ([a-z][\w-]*)", text)
        if name not in evals
    ]
    assert not wrong, f"{page.relative_to(ROOT)} names commands that are not there: {wrong}"


@named
def test_extras_that_are_installed_exist(page: Path):
    """``'.[cpu]'``, ``'./eval[ray]'`` and ``'qm-vllm[cuda]'`` name extras of their distribution."""
    known = {
        folder: set(tomllib.loads((ROOT / folder / "pyproject.toml").read_text(encoding="utf-8"))
                    ["project"]["optional-dependencies"])
        for folder in (".", "eval")
    }
    wrong = []
    text = page.read_text(encoding="utf-8")
    pattern = r"""['" ](\.|\./eval|qm-vllm|qm-vllm-eval)\[([\w,-]+)\]"""
    for what, extras in re.findall(pattern, text):
        folder = "eval" if what.endswith("eval") else "."
        wrong += [extra for extra in extras.split(",") if extra not in known[folder]]
    assert not wrong, f"{page.relative_to(ROOT)} installs extras that are not there: {wrong}"
