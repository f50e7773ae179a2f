"""``qm-vllm calibrate``: measures how deep a model's encoder part has to be."""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from qm_vllm import __version__
from qm_vllm.assets import embedded
from qm_vllm.cli.common import errors, sentences
from qm_vllm.errors import UserError
from qm_vllm_eval.cli.compare import EXTRA


def calibrate(
    out: Annotated[Path, typer.Option("--out", help="The JSON file to write.")],
    model: Annotated[
        str | None, typer.Option(help="Model folder or name; the embedded SmolLM2 if left out.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the model in the file.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Prompts of each of eight tasks.")] = 4,
    length: Annotated[int, typer.Option(min=256, help="Tokens of a prompt.")] = 2048,
    dtype: Annotated[str, typer.Option(help="auto, bfloat16, float16 or float32.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
) -> None:
    """Find the shallowest encoder that loses nothing; serve with --calibration FILE."""
    with sentences():
        try:
            from qm_vllm_eval.engines.reference import ReferenceEngine
            from qm_vllm_eval.haystacks import HaystackError
            from qm_vllm_eval.study import calibrate as study
        except ImportError as error:
            raise UserError(f"{error.name} is missing; install it with {EXTRA}") from error
        from qm_vllm.calibration import Calibration

        if not out.resolve().parent.is_dir():
            raise UserError(f"the folder of --out {out} does not exist; create it first")
        try:
            folder = model or embedded.ensure_model()
            engine = ReferenceEngine(folder, dtype=dtype, threads=threads)
            tried = study.choices(engine.decoder.num_layers)
            with Progress(console=errors()) as progress:
                task = progress.add_task("Calibrating", total=samples * len(study.NAMES))
                measured = study.measure(
                    engine, tried, samples=samples, length=length,
                    advanced=lambda: progress.advance(task),
                )
        except (HaystackError, ValueError, OSError) as error:
            raise UserError(str(error)) from error
        chosen = study.choose(measured)
        Calibration(
            model=name or embedded.public_name(model),
            shape=study.shape_of(engine),
            encoder_layers=chosen.layers,
            window_layers=chosen.window,
            evidence=_evidence(study, measured, engine, samples, length),
        ).save(out)
        _print(measured, chosen)
        typer.echo(out)


def _evidence(
    study: Any, measured: list[Any], engine: Any, samples: int, length: int
) -> dict[str, Any]:
    import torch
    import transformers

    return {
        "date": datetime.date.today().isoformat(),
        "samples_per_task": samples, "length": length, "split": study.SPLIT,
        "tasks": list(study.NAMES), "ratios": list(study.RATIOS),
        "tolerance": study.TOLERANCE,
        "dtype": engine.facts()["dtype"], "device": engine.facts()["device"],
        "versions": {
            "qm_vllm": __version__, "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "choices": [
            {**dataclasses.asdict(one), "retention": round(one.retention, 4),
             "work": round(one.work, 4)}
            for one in measured
        ],
    }


def _print(measured: list[Any], chosen: Any) -> None:
    table = Table("E", "layers read", "retention", "prefill work", *measured[0].families)
    for one in measured:
        mark = " *" if one is chosen else ""
        table.add_row(
            f"{one.layers}{mark}", f"{one.window}", f"{one.retention:.3f}", f"{one.work:.2f}",
            *(f"{value:.2f}" for value in one.families.values()),
        )
    screen = Console()
    Console(width=max(screen.width, 110)).print(table)
