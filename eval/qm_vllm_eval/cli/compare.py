"""``qm-vllm compare``: what KV-memory methods cost and keep, on the same samples."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qm_vllm.assets import embedded
from qm_vllm.cli.common import errors, names, numbers, sentences
from qm_vllm.errors import UserError

EXTRA = "pip install ./eval from a checkout of qm_vllm"
DEFAULT_METHODS = (
    "quickmerge,quickmerge-entropy,quickmerge-prefill,truncation,random,even,mean-pool,"
    "gemfilter-like,specprefill-like,fp8"
)
RATIOS = "0.5,0.4167,0.25,0.125,0.0625"
LENGTHS = "768,2048"


def say(sentence: str) -> None:
    """A line on standard error, as it is."""
    errors().print(sentence, markup=False, highlight=False, soft_wrap=True)


def compare(
    out: Annotated[Path, typer.Option("--out", help="Folder of the results; a stopped run "
                                      "continues there.")],
    model: Annotated[
        str | None, typer.Option(help="Model folder or name; the embedded SmolLM2 if left out.")
    ] = None,
    tasks: Annotated[
        str, typer.Option(help="Names by comma, families too (such as ruler), all, or data.")
    ] = "all",
    methods: Annotated[
        str, typer.Option(help="Names by comma, or all; none and plain always run.")
    ] = DEFAULT_METHODS,
    ratios: Annotated[str, typer.Option(help="Shares of the prompt to keep, by comma.")] = RATIOS,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Your own prompts instead of tasks: JSON lines with prompt or "
                     "messages, and perhaps question and answer."),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat/--raw", help="With --data: wrap each prompt in the model's "
                           "chat template.")
    ] = True,
    answer_tokens: Annotated[
        int, typer.Option(min=1, help="With --data: tokens of the model's own answers, which count "
                          "where a line has none.")
    ] = 64,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Samples of each task, 16 if left out; with --data "
                                 "lines, all if left out.")
    ] = None,
    length: Annotated[str, typer.Option(help="Tokens of a prompt, by comma.")] = LENGTHS,
    query: Annotated[
        str, typer.Option(help="Whether methods see the question: visible, blind or both.")
    ] = "visible",
    split: Annotated[
        str, typer.Option(help="Seeds and texts: tune (to choose with) or report.")
    ] = "report",
    haystacks: Annotated[
        str | None, typer.Option(help="Texts to hide things in, by comma; all if left out.")
    ] = None,
    engine: Annotated[
        str, typer.Option(help="reference (all methods) or vllm (the plug-in).")
    ] = "reference",
    dtype: Annotated[str, typer.Option(help="auto, bfloat16, float16 or float32.")] = "auto",
    block_size: Annotated[
        int | None,
        typer.Option(help="Round K to whole KV blocks plus one; 32 with vllm, else 1 (exact)."),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    first_sample: Annotated[int, typer.Option(min=0, help="Index of the first sample.")] = 0,
) -> None:
    """Measure KV memory against quality, for several methods on the same samples."""
    with sentences():
        try:
            from qm_vllm_eval.study.session import StudyArguments, run_study
        except ImportError as error:
            raise UserError(f"{error.name} is missing; install it with {EXTRA}") from error
        if data and (tasks, length, haystacks, split) != ("all", LENGTHS, None, "report"):
            raise UserError("--data takes the place of --tasks, --length, --haystacks and --split; "
                            "leave these out")
        arguments = StudyArguments(
            out=out,
            model=str(model or embedded.ensure_model()),
            model_name=embedded.public_name(model),
            tasks=names(tasks, "--tasks"),
            methods=names(methods, "--methods"),
            ratios=numbers(ratios, "--ratios"),
            samples=samples or (0 if data else 16),
            lengths=tuple(int(value) for value in numbers(length, "--length", top=1 << 20)),
            query=query,
            split=split,
            haystacks=names(haystacks, "--haystacks") if haystacks else None,
            engine=engine,
            dtype=dtype,
            block_size=block_size or (32 if engine == "vllm" else 1),
            threads=threads,
            first_sample=first_sample,
            data=data,
            chat=chat,
            answer_tokens=answer_tokens,
        )
        paths, whole = run_study(arguments, told=say)
        for path in paths:
            typer.echo(path)
        if not whole:
            errors().print("Stopped before the end; the same command goes on from here.")
            raise typer.Exit(130)
