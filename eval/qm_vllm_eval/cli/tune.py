"""``qm-vllm tune``: the smallest ratio that keeps a user's own prompts within a loss."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from qm_vllm.assets import embedded
from qm_vllm.cli.common import numbers, sentences
from qm_vllm.cli.option_flags import takes_options
from qm_vllm.config import OPTIONS, QuickMergeConfig
from qm_vllm.errors import UserError
from qm_vllm_eval.cli.compare import EXTRA, say

RATIOS = "0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9"
BLOCK = 16
"""Tokens of a KV block, vLLM's default on CUDA: K is rounded to whole blocks plus one."""


@takes_options("min_tokens")
def tune(
    data: Annotated[
        Path, typer.Option("--data", help="JSON lines with prompt or messages, and perhaps "
                           "question and answer.")
    ],
    max_loss: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Mean loss of quality that is allowed.")
    ] = 0.02,
    model: Annotated[
        str | None, typer.Option(help="Model folder or name; the embedded SmolLM2 if left out.")
    ] = None,
    ratios: Annotated[str, typer.Option(help="Shares of the prompt to try, by comma.")] = RATIOS,
    method: Annotated[
        str | None, typer.Option(help="native, quickmerge or one of its variants (see compare); "
                                 "left out: native, with --engine vllm what a server would do.")
    ] = None,
    holdout: Annotated[
        float, typer.Option(min=0.0, max=0.9, help="Share of the prompts that the promise is "
                            "checked on and nothing is chosen on.")
    ] = 0.5,
    seed: Annotated[int, typer.Option(help="Of the draw of held-out prompts.")] = 0,
    chat: Annotated[
        bool, typer.Option("--chat/--raw", help="Wrap each prompt in the model's chat template.")
    ] = True,
    answer_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens of the model's own answers, which count where a "
                          "line has none.")
    ] = 64,
    engine: Annotated[
        str, typer.Option(help="reference (transformers) or vllm (the plug-in).")
    ] = "reference",
    dtype: Annotated[str, typer.Option(help="auto, bfloat16, float16 or float32.")] = "auto",
    block_size: Annotated[
        int, typer.Option(min=1, help="Tokens of a KV block of the server.")
    ] = BLOCK,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    *,
    config: QuickMergeConfig,
) -> None:
    """Find the smallest ratio that loses no more than --max-loss on your own prompts.

    Exits with 1 where no ratio keeps the bound, or held-out prompts break it.
    """
    with sentences():
        try:
            from qm_vllm_eval.study import promise, tune_session
            from qm_vllm_eval.study import tune as study
        except ImportError as error:
            raise UserError(f"{error.name} is missing; install it with {EXTRA}") from error
        folder = str(model or embedded.ensure_model())
        session = tune_session.start(
            tune_session.Wanted(
                data=data, model=folder, method=method or tune_session.usual_method(engine),
                ratios=numbers(ratios, "--ratios"),
                holdout=holdout, seed=seed, chat=chat, answer_tokens=answer_tokens, engine=engine,
                dtype=dtype, block_size=block_size, threads=threads, fewest=config.min_tokens,
            ),
            told=say,
        )
        try:
            measured = session.tune()
            chosen = study.choose(measured.points, max_loss)
            held = session.check(chosen.ratio) if chosen else None
        finally:
            session.close()
        screen = Console()
        wide = Console(width=max(screen.width, 120))
        wide.print(promise.table(measured, max_loss, chosen))
        lines = [promise.quality_means(session.tuned), promise.promise(chosen, measured, max_loss)]
        kept = chosen is not None
        if held is not None:
            said, kept = promise.check(held.points[0], max_loss)
            lines.append(said)
        elif chosen:
            lines.append("Nothing was held out, so the promise was not checked.")
        typer.echo("\n".join([*lines, *promise.doubts(measured, max_loss)]))
        if chosen:
            options = {"ratio": chosen.ratio, **session.options}
            typer.echo(serve_line(model or folder, options, config.min_tokens, block_size))
        if not kept:
            raise typer.Exit(1)


def serve_line(
    model: str, options: Mapping[str, Any], min_tokens: int, block_size: int
) -> str:
    """The command that serves what was measured.

    Args:
        options: of the configuration, by name.
    """
    shown = dict(options)
    if min_tokens != OPTIONS["min_tokens"].default:
        shown["min_tokens"] = min_tokens
    words = ["qm-vllm", "serve", model]
    for name, value in shown.items():
        words += ["--" + name.replace("_", "-"), str(OPTIONS[name].as_text(value))]
    return shlex.join([*words, "--block-size", str(block_size)])
