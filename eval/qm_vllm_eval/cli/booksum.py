"""``qm-vllm eval booksum``: a data set through vLLM replicas under Ray, at several ratios."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from qm_vllm.assets import embedded
from qm_vllm.cli.common import errors, names, numbers, sentences
from qm_vllm.cli.engine_flags import engine_arguments
from qm_vllm.errors import UserError

EXTRA = "pip install './eval[ray]' from a checkout of qm_vllm"

OutOption = Annotated[
    Path, typer.Option("--out", help="Folder of the results; a stopped run goes on there.")
]
ModelOption = Annotated[
    str | None, typer.Option(help="Model folder or name; the embedded SmolLM2 if left out.")
]
RatiosOption = Annotated[
    str, typer.Option(help="Shares of the prompt to keep, by comma; 1.0 is plain vLLM.")
]
ReplicasOption = Annotated[
    int, typer.Option(min=0, help="Engines; 0: one in this process, without Ray.")
]
AddressOption = Annotated[
    str | None, typer.Option(help="A Ray cluster; a local one is started if left out.")
]
LimitOption = Annotated[int | None, typer.Option(min=1, help="Most rows of the data set.")]
EngineOption = Annotated[
    str, typer.Option(help="stock (Ray Data LLM's vLLM processor) or actors (our own).")
]
InFlightOption = Annotated[
    int | None,
    typer.Option(min=1, help="Most requests that a replica has, running and queued; as many as "
                 "--max-num-seqs if left out."),
]
SeqsOption = Annotated[
    int, typer.Option(min=1, help="Requests in one engine's batch. With 1 a row's answer does not "
                      "depend on the rows beside it, to the last bit; more is faster.")
]
ParallelOption = Annotated[int, typer.Option(min=1, help="GPUs of one replica.")]
EagerOption = Annotated[
    bool, typer.Option("--eager/--compiled", help="Without vLLM's compiled mode; starts faster.")
]
ThreadsOption = Annotated[int, typer.Option(min=1, help="CPU threads of one replica.")]
RetryOption = Annotated[bool, typer.Option(help="Run rows again that failed before.")]
ScalingOption = Annotated[
    str | None, typer.Option(help="Numbers of replicas to measure rows/s with, such as 1,2.")
]
ScalingRowsOption = Annotated[int, typer.Option(min=1, help="Requests of that measurement.")]


def booksum(
    context: typer.Context,
    out: OutOption,
    data: Annotated[
        str, typer.Option(help="micro (the set that comes with the project), a parquet, csv or "
                          "jsonl file or folder, or a name on the hub.")
    ] = "micro",
    split: Annotated[
        str | None, typer.Option(help="tune or report (micro); train, validation or test.")
    ] = None,
    ratios: RatiosOption = "1.0,0.4",
    model: ModelOption = None,
    replicas: ReplicasOption = 1,
    ray_address: AddressOption = None,
    limit: LimitOption = None,
    engine: EngineOption = "stock",
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest summary, in tokens.")] = 220,
    words: Annotated[int, typer.Option(min=1, help="Length of the summary to ask for.")] = 150,
    max_source_tokens: Annotated[
        int, typer.Option(min=16, help="Longest prompt; longer chapters get a reason.")
    ] = 7900,
    min_tokens: Annotated[
        int, typer.Option(min=0, help="Prompts shorter than this pass untouched.")
    ] = 256,
    dtype: Annotated[str, typer.Option(help="auto, bfloat16, float16 or float32.")] = "auto",
    in_flight: InFlightOption = None,
    max_num_seqs: SeqsOption = 1,
    tensor_parallel: ParallelOption = 1,
    threads: ThreadsOption = 1,
    eager: EagerOption = True,
    retry_failed: RetryOption = False,
    scaling: ScalingOption = None,
    scaling_rows: ScalingRowsOption = 8,
) -> None:
    """Summaries of book chapters, scored with ROUGE; exit code 1 if a row has failed.

    Other flags go to vLLM's engine.
    """
    with sentences():
        try:
            from qm_vllm_eval.ray.booksum import BookSumTask
            from qm_vllm_eval.ray.work import EngineSettings
        except ImportError as error:
            raise UserError(f"{error.name} is missing; install it with {EXTRA}") from error
        given = engine_arguments(context)
        folder = str(model or embedded.ensure_model())
        task = BookSumTask(
            data=data, split=split, ratios=shares_of(ratios), tokenizer=folder, limit=limit,
            words=words, max_tokens=max_tokens, most_tokens=max_source_tokens,
            min_tokens=min_tokens,
        )
        settings = EngineSettings(
            model=folder, dtype=dtype, max_model_len=max_source_tokens + max_tokens,
            max_num_seqs=max_num_seqs, tensor_parallel=tensor_parallel, threads=threads,
            eager=eager,
        ).with_engine_arguments(given)
        options = run_options(
            out, engine, replicas, address=ray_address, in_flight=in_flight or max_num_seqs,
            retry_failed=retry_failed, scaling=scaling, scaling_units=scaling_rows,
        )
        carry_out(task, settings, embedded.public_name(model), options)


def shares_of(ratios: str) -> tuple[float, ...]:
    """The numbers of ``--ratios``, each once."""
    return tuple(dict.fromkeys(numbers(ratios, "--ratios")))


def run_options(out: Path, engine: str, replicas: int, *, scaling: str | None, **rest: Any) -> Any:
    """Options of a run from those of a command; without replicas it has one engine and no Ray.

    Args:
        rest: fields of :class:`qm_vllm_eval.ray.runner.RunOptions`.
    """
    from qm_vllm_eval.ray.runner import LOCAL, RunOptions

    return RunOptions(
        out=out, engine=engine if replicas else LOCAL, replicas=replicas or 1,
        scaling=_counts(scaling) if replicas else (), command=_command(), **rest,
    )


def carry_out(task: Any, settings: Any, model_name: str, options: Any) -> None:
    """Run a task with a line of progress, print where the files are, exit 1 on failed rows.

    Raises:
        UserError: the run cannot start or go on.
    """
    from qm_vllm_eval.datasets import DataSetError
    from qm_vllm_eval.ray.journal import JournalError
    from qm_vllm_eval.ray.runner import ENGINES, run

    if options.engine not in ENGINES:
        raise UserError(f"no --engine {options.engine!r}; there are stock and actors")
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=errors(), transient=True) as progress:
        line = progress.add_task("starting the engines")
        count = 0

        def tell(row: Mapping[str, Any]) -> None:
            nonlocal count
            count += 1
            progress.update(line, description=f"{count} rows, the last {row['row_id']}")

        try:
            finished = run(task, settings, model_name, options, tell)
        except (DataSetError, JournalError, ValueError, OSError) as error:
            raise UserError(str(error)) from error
    _print(finished)
    if finished.failed:
        raise typer.Exit(1)


def _print(finished: Any) -> None:
    console = errors()
    for flag, told in finished.summary["flagged"].items():
        if told["rows"]:
            console.print(f"{told['rows']} rows are counted though flagged as {flag}",
                          highlight=False)
    for row in finished.failed[:20]:
        console.print(
            f"{row['row_id']} at {row['ratio']:g}: {row['reason']}", markup=False, highlight=False,
            soft_wrap=True,
        )
    if len(finished.failed) > 20:
        console.print(f"and {len(finished.failed) - 20} more, in rows.parquet", highlight=False)
    kinds = ", ".join(f"{n} {kind}" for kind, n in finished.summary["failures"].items())
    console.print(
        f"{finished.summary['run']['new_rows']} new rows, {finished.summary['rows']} in all, "
        f"{len(finished.failed)} failed{f' ({kinds})' if kinds else ''}",
        markup=False, highlight=False,
    )
    for path in finished.paths:
        typer.echo(path)


def _counts(text: str | None) -> tuple[int, ...]:
    if not text:
        return ()
    counts = []
    for part in names(text, "--scaling"):
        if not part.isdigit() or not int(part):
            raise UserError(f"--scaling has {part!r}; give whole numbers of replicas, such as 1,2")
        counts.append(int(part))
    return tuple(counts)


def _command() -> str:
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
