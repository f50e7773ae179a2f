"""``qm-vllm eval ego4d-nlq``: which moment of a video a query asks for, by an AR prior in vLLM."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from qm_vllm.cli.common import errors, sentences
from qm_vllm.cli.engine_flags import engine_arguments
from qm_vllm.errors import UserError
from qm_vllm_eval.cli.booksum import (
    EXTRA,
    AddressOption,
    InFlightOption,
    LimitOption,
    OutOption,
    ParallelOption,
    ReplicasOption,
    RetryOption,
    ScalingOption,
    ScalingRowsOption,
    ThreadsOption,
    carry_out,
    run_options,
    shares_of,
)


def ego4d_nlq(
    context: typer.Context,
    out: OutOption,
    data: Annotated[
        str, typer.Option(help="synthetic, spliced (real videos, see docs/datasets.md), or a "
                          "folder with nlq_train.json and nlq_val.json.")
    ] = "synthetic",
    features: Annotated[
        Path | None, typer.Option(help="Folder of VIDEO_UID.pt; features/ in the data if left out.")
    ] = None,
    split: Annotated[str, typer.Option(help="val or train: which queries are answered.")] = "val",
    prior: Annotated[
        Path | None, typer.Option(help="A trained prior; else one is trained on nlq_train.json.")
    ] = None,
    train_minutes: Annotated[
        float, typer.Option(help="Time of that training.")
    ] = 12.0,
    features_per_second: Annotated[
        float, typer.Option(help="Rate of the features.")
    ] = 1.875,
    ratios: Annotated[
        str, typer.Option(help="Shares of a clip's features to keep, by comma; those below 1 also "
                          "run around random tokens.")
    ] = "1.0,0.4167",
    replicas: ReplicasOption = 1,
    ray_address: AddressOption = None,
    limit: LimitOption = None,
    dtype: Annotated[str, typer.Option(help="auto, bfloat16, float16 or float32.")] = "auto",
    in_flight: InFlightOption = None,
    tensor_parallel: ParallelOption = 1,
    threads: ThreadsOption = 1,
    retry_failed: RetryOption = False,
    scaling: ScalingOption = None,
    scaling_rows: ScalingRowsOption = 8,
) -> None:
    """Five windows for each query, scored as the challenge does; exit code 1 on failed rows.

    Other flags go to vLLM's engine.
    """
    with sentences():
        try:
            from qm_vllm.prior import PriorConfig
            from qm_vllm_eval.datasets import DataSetError
            from qm_vllm_eval.ego4d import prepare
            from qm_vllm_eval.ego4d.report import write_comparison
            from qm_vllm_eval.ego4d.task import Ego4dTask
            from qm_vllm_eval.ray.runner import ACTORS
            from qm_vllm_eval.ray.work import EngineSettings
        except ImportError as error:
            raise UserError(f"{error.name} is missing; install it with {EXTRA}") from error
        given = engine_arguments(context)
        made: dict[str, Callable[[Path], None]] = {
            "synthetic": prepare.synthetic, "spliced": prepare.spliced,
        }
        folder = out / "data" if data in made else Path(data)
        annotations = folder / f"nlq_{split}.json"
        held = features or folder / prepare.FEATURES
        try:
            if data in made:
                made[data](folder)
            trained = prior or _trained(
                prepare, folder, annotations, held, out, train_minutes, features_per_second
            )
            config = PriorConfig.from_pretrained(trained)
        except (DataSetError, ValueError, OSError) as error:
            raise UserError(str(error)) from error
        if not config.num_time_bins:
            raise UserError(f"the prior in {trained.name} has no time-bin head; train one on spans")
        task = Ego4dTask(
            annotations=str(annotations), features=str(held),
            ratios=shares_of(ratios), limit=limit,
            width=config.input_size - config.time_features,
            features_per_second=features_per_second,
            most_tokens=config.max_position_embeddings - 64,
        )
        settings = EngineSettings(
            model=str(trained), dtype=dtype, tensor_parallel=tensor_parallel, threads=threads,
            replica="qm_vllm_eval.ego4d.replica:PriorReplica",
        ).with_engine_arguments(given)
        options = run_options(
            out, ACTORS, replicas, address=ray_address, in_flight=in_flight or 1,
            retry_failed=retry_failed, scaling=scaling, scaling_units=scaling_rows,
        )
        failed = None
        try:
            carry_out(task, settings, trained.name, options)
        except typer.Exit as error:  # rows have failed; the others are compared all the same
            failed = error
        for path in write_comparison(task, out):
            typer.echo(path)
        if failed is not None:
            raise failed


def _trained(
    prepare: Any, folder: Path, val: Path, features: Path, out: Path, minutes: float, rate: float
) -> Path:
    """The prior of an earlier run in ``out``, or a new one."""
    target: Path = out / "prior"
    if (target / "model.safetensors").is_file():
        return target
    console = errors()
    console.print(f"training a prior on {folder / 'nlq_train.json'} for {minutes:g} minutes")

    def report(kind: str, figures: dict[str, Any]) -> None:
        if kind == "eval":
            nll = figures.get("heldout_target_nll", float("nan"))
            console.print(
                f"{figures['seconds']:.0f} s, {figures['steps']} steps: held-out nats a time bin "
                f"{nll:.3f}", highlight=False,
            )

    prepare.train(
        folder / "nlq_train.json", features, val, target, minutes, features_per_second=rate,
        report=report,
    )
    return target
