"""One vLLM engine with the plug-in on, for the commands that run in this process."""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from qm_vllm.api import engine_args
from qm_vllm.config import QuickMergeConfig
from qm_vllm.errors import UserError
from qm_vllm.processor import computes_bf16
from qm_vllm_patches import llm as vllm

BLOCK_SIZE = 32
"""Tokens in a KV block of the demo's engine."""
PROBED = 64
"""Characters for each token of the limit that are tokenised before a longer text is."""


class TooLong(UserError):
    """A text has more tokens than are allowed."""


def require_vllm() -> None:
    """Raise UserError if vLLM is not installed."""
    if find_spec("vllm") is None:
        raise UserError(
            "vLLM is not installed; install the project with an engine: "
            "pip install 'qm-vllm[cuda]' on a CUDA machine, 'qm-vllm[cpu]' elsewhere"
        )


def set_environment(*, quiet: bool) -> None:
    """Defaults that vLLM reads when it is imported; what the user has set stays.

    Args:
        quiet: hide vLLM's own progress lines, so that a table or a bar stays readable.
    """
    defaults = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB
        "VLLM_NO_USAGE_STATS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if quiet:
        defaults |= {"VLLM_LOGGING_LEVEL": "ERROR", "TRANSFORMERS_VERBOSITY": "error"}
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def start(
    model: str | Path,
    config: QuickMergeConfig,
    *,
    max_model_len: int | None = None,
    dtype: str = "auto",
    quiet: bool = True,
    **extra: Any,
) -> Any:
    """Start a ``vllm.LLM`` with the plug-in on.

    Args:
        max_model_len: longest prompt plus output, in tokens; None: what the model allows.
        dtype: as vLLM takes it; "auto" is float32 on a CPU that does not multiply bfloat16.
        extra: more keyword arguments of ``vllm.LLM``, without those that the plug-in sets.

    Raises:
        UserError: vLLM is missing, or the engine refused to start, with its reason.
    """
    set_environment(quiet=quiet)
    if quiet:
        warnings.filterwarnings("ignore", category=FutureWarning)
        logging.getLogger("vllm").setLevel(logging.ERROR)  # until vLLM sets its own loggers up
        extra.setdefault("use_tqdm_on_load", False)
    if Path(model).is_dir():
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    require_vllm()
    if not extra.get("enforce_eager") and not has_compiler():
        extra["enforce_eager"] = True  # vLLM's compiled mode builds C++ kernels at start
    if dtype == "auto" and not computes_bf16():
        dtype = "float32"
    if max_model_len is not None:
        extra["max_model_len"] = max_model_len
    try:
        extra.setdefault("disable_log_stats", False)  # or RequestOutput.metrics stays empty
        return vllm.offline_engine(
            model=str(model), dtype=dtype, **engine_args(config), **extra
        )
    except Exception as error:  # each of vLLM's arguments has its own way to be impossible
        raise UserError(f"vLLM did not start: {_first_lines(error)}") from error


def has_compiler() -> bool:
    """Whether a C++ compiler is on the path."""
    return any(shutil.which(name) for name in ("g++", "clang++", "c++"))


def sampling(max_tokens: int, options: dict[str, Any], *, temperature: float = 0.0) -> Any:
    """``SamplingParams`` with per-request options as :func:`qm_vllm.request_args` gives them."""
    return vllm.sampling(max_tokens=max_tokens, temperature=temperature, extra_args=options)


def text_ids(tokenizer: Any, text: str, *, most: int | None = None, **how: Any) -> list[int]:
    """Token ids of a text.

    Args:
        most: refuse a text whose beginning has twice as many tokens, without tokenising the rest:
            the ids of a text far too long can take more memory than the engine.
        how: keyword arguments of the tokenizer's ``encode``.

    Raises:
        TooLong: the text has more than ``most`` tokens; with ``most`` alone and not always.
        UserError: the tokenizer refuses the text.
    """
    try:
        if most is not None and len(text) > PROBED * most:
            start = len(tokenizer.encode(text[: PROBED * most], **how))
            if start >= 2 * most:
                raise TooLong(f"the prompt has more than {start // 2} tokens")
        return list(tokenizer.encode(text, **how))
    except UserError:
        raise
    except Exception as error:  # tokenizers raise whatever their authors chose
        raise UserError(f"the tokenizer refuses the text: {_first_lines(error)}") from error


def chat_ids(
    tokenizer: Any, messages: list[dict[str, Any]], *, most: int | None = None
) -> list[int]:
    """Token ids of a conversation in the model's chat template; plain text if it has none.

    Args:
        most: see :func:`text_ids`.

    Raises:
        UserError: the template or the tokenizer refuses the messages; see :func:`text_ids`.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        text = "\n\n".join(str(message["content"]) for message in messages)
        return text_ids(tokenizer, text, most=most)
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # templates raise whatever Jinja or their authors chose
        raise UserError(f"the model's chat template refuses the messages: {error}") from error
    return text_ids(tokenizer, text, most=most, add_special_tokens=False)


def max_model_len(llm: Any) -> int:
    """Longest prompt plus output that the engine accepts, in tokens."""
    return vllm.longest_prompt(llm)


def shut_down(llm: Any) -> None:
    """End the engine's processes, if it has any, before the interpreter does."""
    vllm.shut_down(llm)


def _first_lines(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return "\n".join(text.splitlines()[:12])
