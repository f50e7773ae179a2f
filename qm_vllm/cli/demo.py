"""``qm-vllm demo``: the same question to plain vLLM and to vLLM with compressed prompts."""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from qm_vllm import local_engine
from qm_vllm.assets import embedded
from qm_vllm.assets.essay import Document, demo_document, own_document
from qm_vllm.cli.common import errors, sentences
from qm_vllm.cli.engine_flags import engine_arguments
from qm_vllm.cli.option_flags import takes_options
from qm_vllm.config import QuickMergeConfig
from qm_vllm.errors import UserError
from qm_vllm.processor import best_dtype
from qm_vllm.reports import report_of
from qm_vllm.request_options import request_args

MAX_MODEL_LEN = 8192


@dataclass(frozen=True)
class Measurement:
    """One request: sizes from the plug-in's report, seconds from this process's clock."""

    source_tokens: int
    kept_tokens: int
    kv_blocks: int
    kv_bytes: int
    ttft_s: float
    total_s: float
    answer: str
    correct: bool | None


@takes_options("ratio", ratio=0.33)
def demo(
    context: typer.Context,
    *,
    config: QuickMergeConfig,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the figures to this file.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model folder or name; the embedded SmolLM2 if left out.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 48,
    text: Annotated[
        Path | None, typer.Option(help="A text file of your own (with --question).")
    ] = None,
    question: Annotated[str | None, typer.Option(help="What to ask about the text.")] = None,
    answer: Annotated[
        str | None, typer.Option(help="Short right answer; the reply must contain it.")
    ] = None,
    eager: Annotated[
        bool, typer.Option(help="Skip vLLM's compiled mode: starts sooner, runs slower.")
    ] = False,
    verbose: Annotated[bool, typer.Option(help="Show vLLM's own log.")] = False,
) -> None:
    """Answer a question about a long text with plain vLLM and with a compressed prompt.

    Other flags go to vLLM's engine.
    """
    with sentences():
        given = engine_arguments(context, quiet=not verbose)
        document = own_document(text, question, answer) if text else _asked(question, answer)
        if json_file is not None and not json_file.resolve().parent.is_dir():
            raise UserError(f"the folder of --json {json_file} does not exist; create it first")
        folder = model or embedded.ensure_model()
        with errors().status("Starting vLLM"):
            engine: dict[str, Any] = {
                "max_model_len": MAX_MODEL_LEN, "dtype": best_dtype(), "enforce_eager": eager,
                "block_size": local_engine.BLOCK_SIZE,
                "enable_prefix_caching": False,  # both requests compute their whole prompt
            }
            llm = local_engine.start(folder, config, quiet=not verbose, **engine | given)
        try:
            results = _compare(llm, document, max_tokens)
        finally:
            local_engine.shut_down(llm)
        _print_table(document, results)
        if json_file is not None:
            figures = {name: dataclasses.asdict(value) for name, value in results.items()}
            json_file.write_text(json.dumps(figures, indent=2) + "\n")


def _asked(question: str | None, answer: str | None) -> Document:
    """The demo text; a question of the user's replaces the built-in one."""
    document = demo_document()
    if question is None:
        if answer is not None:
            raise UserError("--answer needs --question: the built-in question has its own answer")
        return document
    return dataclasses.replace(document, question=question, answer=answer)


def _compare(llm: Any, document: Document, max_tokens: int) -> dict[str, Measurement]:
    """Both ways, each after a warm-up request of the same length over other content.

    Raises:
        UserError: the prompt is too long, or the compressed request was not compressed.
    """
    tokenizer = llm.get_tokenizer()
    ids = local_engine.chat_ids(tokenizer, [{"role": "user", "content": document.prompt()}])
    limit = local_engine.max_model_len(llm)
    if len(ids) + max_tokens > limit:
        raise UserError(
            f"the prompt has {len(ids)} tokens, and with --max-tokens {max_tokens} it passes "
            f"the model's {limit}; shorten the text"
        )
    warm_up = local_engine.chat_ids(
        tokenizer, [{"role": "user", "content": document.warm_up_prompt()}]
    )[: limit - max_tokens]
    results = {}
    for name, options in (("plain", request_args(enabled=False)), ("quickmerge", {})):
        with errors().status(f"Running {name}"):
            _run(llm, warm_up, 4, options)
            output, seconds = _run(llm, ids, max_tokens, options)
        report = report_of(output)
        if name == "quickmerge" and report.get("status") != "compressed":
            raise UserError(
                f"the prompt was not compressed: {report.get('reason', 'no reason given')}"
            )
        results[name] = _measure(document, output, report, seconds)
    return results


def _run(llm: Any, ids: list[int], max_tokens: int, options: dict[str, Any]) -> tuple[Any, float]:
    """One greedy request; its output and its seconds from submission to the last token."""
    started = time.perf_counter()
    (output,) = llm.generate(
        {"prompt_token_ids": ids}, local_engine.sampling(max_tokens, options), use_tqdm=False
    )
    return output, time.perf_counter() - started


def _measure(
    document: Document, output: Any, report: dict[str, Any], seconds: float
) -> Measurement:
    """Collect the figures. TTFT runs from the request's arrival in vLLM to its first token."""
    if output.metrics is None:
        raise UserError("vLLM returned no metrics for the request; its statistics are switched off")
    reply = output.outputs[0].text.strip()
    return Measurement(
        source_tokens=int(report["source_tokens"]),
        kept_tokens=int(report["kept_tokens"]),
        kv_blocks=int(report["kv_blocks"]),
        kv_bytes=int(report["kv_bytes"]),
        ttft_s=round(float(output.metrics.first_token_latency), 4),
        total_s=round(seconds, 4),
        answer=reply,
        correct=document.is_correct(reply),
    )


def _print_table(document: Document, results: dict[str, Measurement]) -> None:
    table = Table(title=document.title, caption=document.question, caption_justify="left")
    table.add_column("")
    for name in results:
        table.add_column({"plain": "plain vLLM", "quickmerge": "QuickMerge"}[name])
    words = {True: "yes", False: "no", None: "no answer given to compare with"}
    rows = (
        ("prompt tokens", lambda m: f"{m.source_tokens:,}"),
        ("kept tokens", lambda m: f"{m.kept_tokens:,}"),
        ("KV blocks", lambda m: f"{m.kv_blocks:,}"),
        ("KV MiB", lambda m: f"{m.kv_bytes / 2**20:.2f}"),
        ("time to first token", lambda m: f"{m.ttft_s:.2f} s"),
        ("total time", lambda m: f"{m.total_s:.2f} s"),
        ("answer", lambda m: m.answer.replace("[", "\\[")),
        ("correct", lambda m: words[m.correct]),
    )
    for label, show in rows:
        table.add_row(label, *(show(measurement) for measurement in results.values()))
    Console().print(table)
