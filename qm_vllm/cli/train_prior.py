"""``qm-vllm train-prior``: trains an AR prior over the merged states of a frozen encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from qm_vllm.cli.common import errors, sentences
from qm_vllm.errors import UserError


def train_prior(
    data: Annotated[
        list[Path],
        typer.Option(help="Text files, feature files, .jsonl manifests, or folders of them; "
                     "may be given several times."),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the run. One that was cut goes on.")],
    encoder: Annotated[
        str, typer.Option(help="minilm, dinov2, features, or a model's folder or name.")
    ] = "minilm",
    heldout: Annotated[
        list[Path] | None,
        typer.Option(help="Files that are only measured on; else a tenth of the data."),
    ] = None,
    minutes: Annotated[float, typer.Option(help="Time for training.")] = 10.0,
    layers: Annotated[int, typer.Option(min=1, help="Blocks of each direction.")] = 6,
    width: Annotated[int, typer.Option(min=2, help="Hidden size.")] = 512,
    heads: Annotated[int, typer.Option(min=1, help="Attention heads.")] = 8,
    batch_size: Annotated[int, typer.Option(help="Sequences per step.")] = 16,
    window: Annotated[int, typer.Option(help="Source tokens per sequence.")] = 256,
    ratio: Annotated[
        tuple[float, float], typer.Option(help="Range of K / N in training.")
    ] = (0.3, 0.6),
    learning_rate: Annotated[float, typer.Option(help="Peak of AdamW's rate.")] = 1e-3,
    target_tokens: Annotated[
        int, typer.Option(help="Train a token head on so many tokens after each window.")
    ] = 0,
    time_bins: Annotated[
        int, typer.Option(min=1, help="Bins of the time-bin head, where a manifest has spans.")
    ] = 64,
    learn_layers: Annotated[
        bool, typer.Option(help="Learn how much each layer's entropy counts.")
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda; cuda if there is one.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    seed: Annotated[int, typer.Option(help="Of weights, order and noise.")] = 0,
) -> None:
    """Train an AR prior; DIR then holds config.json, model.safetensors, metrics.json, loss.png."""
    with sentences():
        try:
            import torch
            from transformers.utils import logging

            from qm_vllm.encoders import EncoderError
            from qm_vllm.prior.data import DataError, read
            from qm_vllm.prior.options import TrainOptions
            from qm_vllm.prior.plot import loss_plot
            from qm_vllm.prior.trainer import Trainer
        except ImportError as error:
            raise UserError(
                f"{error.name} is missing; install the project with its encoders and eval extras"
            ) from error

        logging.disable_progress_bar()  # our own bar says how far it is
        if threads:
            torch.set_num_threads(threads)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            options = TrainOptions(
                minutes=minutes, batch_size=batch_size, window_tokens=window, ratios=ratio,
                learning_rate=learning_rate, target_tokens=target_tokens,
                learn_layers=learn_layers, seed=seed,
            )
            samples = read(data, heldout or [], window)
            frozen = _encoder(encoder, samples, device)
            config = _config(frozen, samples, options, layers, width, heads, time_bins)
            with _Bar(options) as report:
                trainer = Trainer(frozen, samples, config, options, out, report)
                metrics = trainer.run()
            title = f"AR prior over {frozen.name}, K = N / {1 / options.eval_ratio:.1f}"
            loss_plot(trainer.state["history"], out / "loss.png", title)
        except (DataError, EncoderError, ValueError, FloatingPointError, OSError) as error:
            raise UserError(str(error)) from error
        _print(metrics)
        typer.echo(out)


def _encoder(name: str, samples: Any, device: str) -> Any:
    from qm_vllm.encoders import load_encoder
    from qm_vllm.encoders.load import of_width

    first = samples.train[0].source
    if name != "features":
        if isinstance(first, Path):
            raise UserError(f"{first.name} holds features; train on them with --encoder features")
        return load_encoder(name, device=device)
    if not isinstance(first, Path):
        raise UserError(
            "--encoder features needs feature files (.pt, .npy, .safetensors) or a .jsonl that "
            "names them, not text"
        )
    return of_width(first, device)


def _config(
    encoder: Any, samples: Any, options: Any, layers: int, width: int, heads: int, time_bins: int
) -> Any:
    from qm_vllm.prior import PriorConfig
    from qm_vllm.prior.side_inputs import QUERY_BUCKETS, TIME_FEATURES

    tokens, tokenizer = 0, getattr(encoder, "tokenizer", None)
    if options.target_tokens and tokenizer is None:
        raise UserError("--target-tokens needs a text encoder")
    if options.target_tokens or samples.has_queries:
        tokens = QUERY_BUCKETS if tokenizer is None else len(tokenizer)
    times = TIME_FEATURES if samples.has_spans else 0
    return PriorConfig(
        input_size=encoder.hidden_size + times, time_features=times, hidden_size=width,
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=heads,
        intermediate_size=-(-width * 8 // (3 * 64)) * 64, num_tokens=tokens,
        num_classes=samples.num_classes, num_time_bins=time_bins if samples.has_spans else 0,
        encoder=encoder.name,
    )


class _Bar:
    """A bar over the time, with the last losses beside it."""

    def __init__(self, options: Any) -> None:
        self.total = options.minutes * 60
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(),
            console=errors(),
        )

    def __enter__(self) -> Any:
        self.bar.start()
        self.task = self.bar.add_task("training", total=self.total)
        return self._report

    def __exit__(self, *_: Any) -> None:
        self.bar.stop()

    def _report(self, kind: str, figures: dict[str, Any]) -> None:
        if kind == "eval":
            self.bar.console.print(
                f"{figures['seconds']:.0f} s, {figures['tokens']:,} tokens: held-out L_AR "
                f"{figures['heldout_l_ar']:.4f} (copy {figures['copy_last']:.4f}, mean "
                f"{figures['mean_state']:.4f})",
                highlight=False,
            )
        else:
            self.bar.update(
                self.task, completed=min(figures["seconds"], self.total),
                description=f"step {figures['step']}, L_AR {figures['l_ar']:.3f}",
            )


def _print(metrics: dict[str, Any]) -> None:
    table = Table("held-out", "value")
    for name, value in metrics.items():
        if isinstance(value, float):
            table.add_row(name, f"{value:.4f}")
        elif isinstance(value, int):
            table.add_row(name, f"{value:,}")
    Console().print(table)
