"""``qm-vllm eval paper-tables`` and ``paper-claims``: what the paper says, measured."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from qm_vllm.cli.common import errors, names, sentences
from qm_vllm.errors import UserError
from qm_vllm_eval.cli.booksum import OutOption

EXTRA = "pip install './eval[ray]' from a checkout of qm_vllm"


def paper_tables(
    out: OutOption,
    scale: Annotated[
        str, typer.Option(help="smoke (minutes), small (under an hour on two cores), medium (the "
                          "paper's decoder, for a GPU), full (the paper's data as well).")
    ] = "small",
    tables: Annotated[str, typer.Option(help="Which tables, by comma.")] = "1,2,3,4,5",
    tasks: Annotated[
        str, typer.Option(help="Tasks of Tables 1 and 2: text, image, video.")
    ] = "text,image,video",
    device: Annotated[
        str, typer.Option(help="Where decoders are trained: auto, cpu or cuda.")
    ] = "auto",
    workers: Annotated[
        int, typer.Option(min=1, help="Decoders trained side by side, in processes of their own.")
    ] = 1,
    text_encoder: Annotated[
        str, typer.Option(help="minilm, a folder or a name on the hub, such as BERT's.")
    ] = "minilm",
    image_encoder: Annotated[
        str, typer.Option(help="dinov2, a folder or a name on the hub.")
    ] = "dinov2",
    wikitext: Annotated[
        str | None, typer.Option(help="WikiText-103: folder, file or hub name (scale full).")
    ] = None,
    imagenet: Annotated[str | None, typer.Option(help="Folder of ImageNet-1K (full).")] = None,
    ucf101: Annotated[str | None, typer.Option(help="Folder of UCF101 (full).")] = None,
    booksum: Annotated[
        str | None, typer.Option(help="BookSum for Table 4: files or hub name (full).")
    ] = None,
    ego4d: Annotated[
        str | None, typer.Option(help="Folder of Ego4D NLQ for Table 4 (full).")
    ] = None,
    coco: Annotated[str | None, typer.Option(help="MSCOCO captions for Table 5.")] = None,
    something: Annotated[str | None, typer.Option(help="Something-Something v2, Table 5.")] = None,
    tvqa: Annotated[str | None, typer.Option(help="TVQA for Table 5.")] = None,
    qasper: Annotated[str | None, typer.Option(help="QASPER for Table 5.")] = None,
) -> None:
    """Tables 1 to 5 of the paper, beside its own figures; a stopped run goes on in --out."""
    with sentences():
        try:
            import torch

            from qm_vllm.encoders import EncoderError
            from qm_vllm_eval.datasets import DataSetError
            from qm_vllm_eval.paper.run import TABLES, Options, run
            from qm_vllm_eval.paper.scale import SCALES
            from qm_vllm_eval.paper.sources import TASKS, DataPaths
            from qm_vllm_eval.paper.table4 import Table4Data
            from qm_vllm_eval.paper.table5 import Table5Data
            from qm_vllm_eval.ray.journal import JournalError
        except ImportError as error:
            raise UserError(f"{error.name} is missing; install it with {EXTRA}") from error
        if scale not in SCALES:
            raise UserError(f"no --scale {scale!r}; there are {', '.join(SCALES)}")
        options = Options(
            scale=SCALES[scale], out=out,
            tables=tuple(int(n) for n in _of(tables, "--tables", [str(n) for n in TABLES])),
            tasks=tuple(_of(tasks, "--tasks", TASKS)),
            paths=DataPaths(wikitext, imagenet, ucf101, text_encoder, image_encoder),
            table4=Table4Data(booksum=booksum, ego4d=ego4d),
            table5=Table5Data(coco=coco, something=something, tvqa=tvqa, qasper=qasper),
            device=_device(device, torch.cuda.is_available()), workers=workers,
            command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        )
        console = errors()
        try:
            paths = run(options, lambda line: console.print(line, markup=False, highlight=False))
        except (DataSetError, EncoderError, JournalError, OSError) as error:
            raise UserError(str(error)) from error
        for path in paths:
            typer.echo(path)


def paper_claims(out: OutOption) -> None:
    """Every claim of the paper checked on real states (docs/paper.md)."""
    with sentences():
        try:
            from qm_vllm.encoders import EncoderError
            from qm_vllm_eval.paper.claims.run import run_claims
        except ImportError as error:
            raise UserError(f"{error.name} is missing; install it with {EXTRA}") from error
        try:
            typer.echo(run_claims(out))
        except (EncoderError, OSError) as error:
            raise UserError(str(error)) from error


def _of(text: str, option: str, known: Sequence[str]) -> Sequence[str]:
    chosen = names(text, option)
    for name in chosen:
        if name not in known:
            raise UserError(f"{option} has {name!r}; there are {', '.join(known)}")
    return chosen


def _device(name: str, cuda: bool) -> str:
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"no --device {name!r}; there are auto, cpu and cuda")
    if name == "cuda" and not cuda:
        raise UserError("--device cuda: this machine has no CUDA device; use cpu")
    return ("cuda" if cuda else "cpu") if name == "auto" else name
