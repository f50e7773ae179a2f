"""Real vLLM engines for tests: in this process, so that a test can look into the scheduler."""

from __future__ import annotations

import gc
import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.families import build

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("TRITON_F32_DEFAULT", "ieee")  # on CUDA: float32 products, not TF32
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")

TINY_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


@contextmanager
def engine(model: str | Path, config: Any = None, **overrides: Any) -> Iterator[Any]:
    """A ``vllm.LLM``; with a :class:`QuickMergeConfig` the plug-in is on."""
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory
    from vllm.distributed.kv_transfer import ensure_kv_transfer_shutdown

    from qm_vllm import engine_args

    options: dict[str, Any] = {
        "model": str(model), "dtype": "float32", "max_model_len": 4096, "block_size": 32,
        "enforce_eager": True, "kv_cache_memory_bytes": 256 << 20, "seed": 0,
        "num_gpu_blocks_override": 1024,  # a CPU's cache is 1 GiB at least, which is filled first
        "max_num_batched_tokens": 2048, "disable_log_stats": True,
        "async_scheduling": False,  # what a CPU does; blocks are counted step by step
    }
    if _on_cuda():
        options["gpu_memory_utilization"] = 0.08  # several workers of a test run share the device
    options.update(overrides)
    if config is not None:
        options.update(engine_args(config))
    with _no_collections():
        llm = LLM(**options)
    try:
        yield llm
    finally:
        with _no_collections():
            llm.llm_engine.engine_core.shutdown()
            ensure_kv_transfer_shutdown()
            del llm
            cleanup_dist_env_and_memory(shutdown_ray=False)
        _restore_transformers()
        gc.collect()


def _restore_transformers() -> None:
    """Take back what vLLM does to a class of transformers that it runs a model through.

    It wants vLLM's configuration from then on, and another test of the process has none.
    """
    from vllm.compilation.wrapper import TorchCompileWithNoGuardsWrapper as Wrapper

    for changed in Wrapper.__subclasses__():
        if changed.__module__.startswith("transformers."):
            changed.__init__ = inspect.getclosurevars(changed.__init__).nonlocals["old_init"]
            changed.__bases__ = tuple(one for one in changed.__bases__ if one is not Wrapper)
            if "__call__" in vars(changed):
                del changed.__call__


@contextmanager
def _no_collections() -> Iterator[None]:
    """Where there is no device memory to free, vLLM's own collections of garbage are left out.

    A start and a stop ask for eight, over all that torch and transformers hold: half of the time
    that a tiny engine takes.
    """
    own = gc.collect
    if not _on_cuda():
        gc.collect = lambda generation=2: 0
    try:
        yield
    finally:
        gc.collect = own


def _on_cuda() -> bool:
    from vllm.platforms import current_platform

    return bool(current_platform.is_cuda())


def scheduler_of(llm: Any) -> Any:
    """vLLM's own scheduler of an in-process engine."""
    return llm.llm_engine.engine_core.engine_core.scheduler


def make_tiny_model(family: str, folder: Path, *, layers: int = 6, seed: int = 0) -> Path:
    """A random decoder of the family: hidden 128, 4 heads, 2 KV heads, 512 tokens."""
    import torch
    from transformers import OPTConfig, OPTForCausalLM

    if family == "opt":
        torch.manual_seed(seed)
        model = OPTForCausalLM(OPTConfig(
            vocab_size=512, hidden_size=128, ffn_dim=256, num_hidden_layers=layers,
            num_attention_heads=4, max_position_embeddings=4096, word_embed_proj_dim=128,
        )).eval()
    else:
        model = build({"gemma3": "gemma-3"}.get(family, family), seed, num_hidden_layers=layers)
    target = folder / family
    model.save_pretrained(target)
    return target


def random_prompt(length: int, seed: int, vocab: int = 512) -> list[int]:
    """Token ids without special tokens."""
    import random

    chooser = random.Random(seed)
    return [chooser.randrange(3, vocab) for _ in range(length)]


@contextmanager
def forced_async(ahead: bool = True) -> Iterator[None]:
    """Asynchronous scheduling as on a GPU, which vLLM's CPU platform switches off."""
    import pytest
    from vllm.platforms.cpu import CpuPlatform

    from qm_vllm_eval.serving.forced_async import force

    with pytest.MonkeyPatch.context() as patch:
        if ahead and not _on_cuda():
            name = "check_and_update_config"
            patch.setattr(CpuPlatform, name, vars(CpuPlatform)[name])  # restored at the end
            force()
        yield
