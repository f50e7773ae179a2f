"""The house: one arrow from studies to product to the room of vLLM, no circles, short files."""

from __future__ import annotations

import ast
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from qm_vllm.cli import main

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "qm_vllm": ROOT / "qm_vllm", "qm_vllm_patches": ROOT / "patches" / "qm_vllm_patches",
    "qm_vllm_eval": ROOT / "eval" / "qm_vllm_eval",
}
MOST_LINES = 300


def modules() -> dict[str, Path]:
    found = {}
    for name, folder in PACKAGES.items():
        for file in folder.rglob("*.py"):
            parts = [name, *file.relative_to(folder).with_suffix("").parts]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


MODULES = modules()


def imports(module: str, *, lazy: bool = True) -> set[str]:
    """Our modules that this one imports; without ``lazy`` only what runs when it is imported."""
    file = MODULES[module]
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found = set()
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        typing = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if typing or (not lazy and isinstance(node, (ast.FunctionDef, ast.Lambda))):
            continue
        stack.extend(ast.iter_child_nodes(node))
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in MODULES else node.module)
    return {name for name in found if name in MODULES}


@pytest.mark.parametrize("module", MODULES)
def test_arrows_point_one_way(module):
    package = module.split(".")[0]
    below = {
        "qm_vllm_eval": {"qm_vllm_eval", "qm_vllm", "qm_vllm_patches"},
        "qm_vllm": {"qm_vllm", "qm_vllm_patches"}, "qm_vllm_patches": {"qm_vllm_patches"},
    }[package]
    assert {name.split(".")[0] for name in imports(module)} <= below


def test_there_are_no_circles():
    """Not even through imports inside functions."""
    graph = {module: imports(module) for module in MODULES}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module):], module])
        if module in done:
            return
        for other in sorted(graph[module] - {module}):
            # A package's face imports its own files, which may be imported through it.
            if not (other in MODULES and MODULES[other].name == "__init__.py"
                    and module.startswith(other + ".")):
                visit(other, (*path, module))
        done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("file", [
    file for folder in (*PACKAGES.values(), ROOT / "scripts", ROOT / "benchmarks", ROOT / "tests")
    for file in sorted(folder.rglob("*.py"))
], ids=lambda file: str(file.relative_to(ROOT)))
def test_files_are_short(file):
    most = MOST_LINES + (80 if "tests" in file.parts else 0)
    assert len(file.read_text(encoding="utf-8").splitlines()) <= most


def test_the_studies_add_their_commands_where_they_are_installed():
    points = {point.name: point.value for point in entry_points(group=main.GROUP)}
    assert set(points) == {"calibrate", "compare", "eval", "tune"}
    assert all(value.startswith("qm_vllm_eval.") for value in points.values())
    shown = CliRunner().invoke(main.app, ["--help"]).output
    assert all(name in shown for name in points)


class Broken:
    """An entry point whose module does not import."""

    name, value = "study", "gone.module:command"

    def load(self):
        raise ImportError("no module named gone")


def test_studies_that_do_not_import_leave_the_other_commands_alone(monkeypatch):
    app = typer.Typer()
    app.command("own")(lambda: typer.echo("works"))
    monkeypatch.setattr(main, "entry_points", lambda group: [Broken()])
    main.add_commands(app)
    runner = CliRunner()
    assert runner.invoke(app, ["own"]).output == "works\n"
    failed = runner.invoke(app, ["study", "--any", "flag"])
    assert failed.exit_code == 1
    assert "gone.module:command cannot be imported (ImportError: no module named gone)" in (
        failed.output
    )
