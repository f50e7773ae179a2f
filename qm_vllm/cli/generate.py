"""``qm-vllm generate``: an offline batch over a file of JSON lines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from qm_vllm import local_engine
from qm_vllm.cli.batch_lines import Item, Problem, Unfinished, finished_ids, result_line
from qm_vllm.cli.common import errors, sentences
from qm_vllm.cli.engine_flags import engine_arguments
from qm_vllm.cli.option_flags import takes_options
from qm_vllm.config import QuickMergeConfig
from qm_vllm.errors import UserError
from qm_vllm.reports import REFUSED, REPORT_KEY, report_of
from qm_vllm_patches import llm as vllm

Ready = tuple[Item, list[int]]


@takes_options(
    "ratio", "max_kept", "alpha", "max_error", "preset", "min_tokens", "query_visible",
    "hint", "calibration", "max_source_tokens",
)
def generate(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="Model folder or name.")],
    input_file: Annotated[
        Path, typer.Option("--input", help='Lines of {"id", "prompt" or "messages"}.')
    ],
    output_file: Annotated[
        Path, typer.Option("--output", help="Results, a line each; ids in it are not run again.")
    ],
    *,
    config: QuickMergeConfig,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    max_model_len: Annotated[
        int | None, typer.Option(help="Longest prompt plus answer, in tokens.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto, bfloat16, float16 or float32.")] = "auto",
    batch_size: Annotated[
        int, typer.Option(min=1, help="Requests handed to vLLM between two writes.")
    ] = 64,
    eager: Annotated[bool, typer.Option(help="Skip vLLM's compiled mode.")] = False,
    verbose: Annotated[bool, typer.Option(help="Show vLLM's own log.")] = False,
) -> None:
    """Run a file of prompts; safe to interrupt and to start again. Other flags go to vLLM's engine.

    Those are flags such as --block-size 32, as `vllm serve` takes them.
    """
    with sentences():
        engine = {
            "max_model_len": max_model_len, "dtype": dtype, "enforce_eager": eager,
        } | engine_arguments(context, quiet=not verbose)
        unfinished = plan(input_file, output_file)
        items = iter(unfinished)
        first = next(items, None)  # no engine where there is nothing to run
        written = 0
        failed: list[Problem] = []
        try:
            output = output_file.open("a", encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write {output_file}: {error.strerror}") from error
        with output:
            if first is not None:
                with errors().status("Starting vLLM"):
                    llm = local_engine.start(model, config, quiet=not verbose, **engine)
                try:
                    refused: list[Problem] = []
                    ready = tokenised(llm, chain([first], items), refused)
                    run = _runner(llm, max_tokens, temperature)
                    written, failed = write_all(ready, run, output, batch_size, unfinished)
                    failed += refused
                finally:
                    local_engine.shut_down(llm)
        _close(written, unfinished.problems + failed, unfinished.skipped)


def plan(input_file: Path, output_file: Path) -> Unfinished:
    """What to run: the items of the input that the output does not hold already.

    Raises:
        UserError: a file cannot be read, or the output holds foreign lines.
    """
    if input_file.resolve() == output_file.resolve():
        raise UserError("--input and --output name the same file; name another --output")
    return Unfinished(input_file, finished_ids(output_file))


def tokenised(llm: Any, items: Iterable[Item], problems: list[Problem]) -> Iterator[Ready]:
    """Each item with its token ids, as they are asked for.

    Args:
        problems: gets the prompts that do not fit or that template or tokenizer refuse.
    """
    tokenizer = llm.get_tokenizer()
    limit = local_engine.max_model_len(llm)
    for item in items:
        try:
            if item.messages is not None:
                ids = local_engine.chat_ids(tokenizer, item.messages, most=limit)
            else:
                ids = local_engine.text_ids(tokenizer, item.prompt or "", most=limit)
        except local_engine.TooLong as error:
            problems.append(Problem(item.line, _beyond(error, limit)))
            continue
        except UserError as error:
            problems.append(Problem(item.line, str(error)))
            continue
        if not ids:
            problems.append(Problem(item.line, "the prompt has no tokens; give it some text"))
        elif len(ids) >= limit:
            problems.append(Problem(item.line, _beyond(f"the prompt has {len(ids)} tokens", limit)))
        else:
            yield item, ids


def _beyond(told: object, limit: int) -> str:
    return (
        f"{told} and the engine takes fewer than {limit}; shorten it or raise --max-model-len"
    )


def _runner(
    llm: Any, max_tokens: int, temperature: float
) -> Callable[[list[Ready]], list[Any]]:
    """A function that runs some requests together and returns their outputs in order."""

    def run(batch: list[Ready]) -> list[Any]:
        prompts = [{"prompt_token_ids": ids} for _, ids in batch]
        params = [
            local_engine.sampling(max_tokens, item.options, temperature=temperature)
            for item, _ in batch
        ]
        try:
            return list(llm.generate(prompts, params, use_tqdm=False))
        except vllm.refusals() as error:
            raise ValueError(str(error)) from error

    return run


def write_all(
    ready: Iterable[Ready],
    run: Callable[[list[Ready]], list[Any]],
    output: TextIO,
    batch_size: int,
    source: Unfinished | None = None,
) -> tuple[int, list[Problem]]:
    """Run in batches and write each as it ends; no more than a batch is taken from ``ready``.

    Args:
        source: where the requests come from: how much of it is read moves the bar.

    Returns how many results were written, and the requests that failed.
    """
    written = 0
    problems: list[Problem] = []
    requests = iter(ready)
    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[written]} written"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=errors()) as progress:
        total = source.size if source else None
        task = progress.add_task("Generating", total=total, written=0)

        def show() -> None:
            progress.update(task, completed=source.position if source else None, written=written)

        while batch := list(islice(requests, batch_size)):
            for item, outcome in _run_batch(batch, run):
                line = outcome if isinstance(outcome, Problem) else _result(item, outcome)
                if isinstance(line, Problem):
                    problems.append(line)
                else:
                    output.write(line)
                    written += 1
            output.flush()
            show()
        show()  # the last lines may have been bad, or known
    return written, problems


def _result(item: Item, outcome: Any) -> str | Problem:
    """The output line of one finished request, or what went wrong with it."""
    completion = outcome.outputs[0]
    if completion.finish_reason in ("error", "abort"):
        told = (outcome.kv_transfer_params or {}).get(REPORT_KEY) or {}
        if told.get("status") == REFUSED:
            return Problem(item.line, told["reason"])
        return Problem(item.line, "the engine gave this request up; its log has the reason")
    try:
        return result_line(item, completion.text, report_of(outcome))
    except UserError as error:
        return Problem(item.line, str(error))


def _run_batch(
    batch: list[Ready], run: Callable[[list[Ready]], list[Any]]
) -> list[tuple[Item, Any]]:
    """Outputs of a batch. If vLLM refuses the batch, each request is tried by itself.

    Raises:
        UserError: the engine has died; what was written stays, and a new start goes on there.
    """
    try:
        return list(zip((item for item, _ in batch), run(batch), strict=True))
    except (ValueError, TypeError, OverflowError) as error:  # vLLM refuses one of the requests
        if len(batch) == 1:
            item = batch[0][0]
            return [(item, Problem(item.line, f"vLLM refused the request: {error}"))]
        return [pair for single in batch for pair in _run_batch([single], run)]
    except Exception as error:  # EngineDeadError is no RuntimeError
        raise UserError(
            f"the engine stopped ({error}); start the same command again, it goes on from here"
        ) from error


def _close(written: int, problems: list[Problem], skipped: int) -> None:
    """Report bad lines and the sums. Exit code 1 if any line failed."""
    console = errors()
    for problem in sorted(problems, key=lambda p: p.line):
        console.print(
            f"line {problem.line}: {problem.message}", markup=False, highlight=False, soft_wrap=True
        )
    console.print(
        f"{written} written, {len(problems)} failed, {skipped} were in the output already",
        highlight=False,
    )
    if problems:
        raise typer.Exit(1)
