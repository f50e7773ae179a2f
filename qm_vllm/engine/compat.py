"""Everything of vLLM that the plug-in touches, and the checks that run when an engine starts.

Public: ``KVConnectorBase_V1`` (hooks in :data:`HOOKS`), ``worker_cls``. Private symbols are in
:data:`PRIVATE`, each used in the one file named beside it, and in :data:`OPTIONAL`, which have
a fallback.
"""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass

MIN_VERSION, BELOW_VERSION = (0, 32), (0, 33)

HOOKS: dict[str, tuple[str, ...]] = {
    "on_new_request": ("self", "request"),
    "get_num_new_matched_tokens": ("self", "request", "num_computed_tokens"),
    "update_state_after_alloc": ("self", "request", "blocks", "num_external_tokens"),
    "build_connector_meta": ("self", "scheduler_output"),
    "update_connector_output": ("self", "connector_output"),
    "request_finished": ("self", "request", "block_ids"),
    "register_kv_caches": ("self", "kv_caches"),
    "start_load_kv": ("self", "forward_context", "kwargs"),
    "wait_for_save": ("self",),
    "get_block_ids_with_load_errors": ("self",),
    "build_connector_worker_meta": ("self",),
    "reset_cache": ("self",),
    "get_kv_connector_stats": ("self",),
    "build_kv_connector_stats": ("data",),
    "build_prom_metrics": (
        "vllm_config", "metric_types", "labelnames", "per_engine_labelvalues",
    ),
}
"""Connector methods that the plug-in overrides, with the parameters it was written for."""

PRIVATE: tuple[tuple[str, str, str], ...] = (
    ("vllm.v1.request:Request", "update_block_hashes", "request_resize.py"),
    ("vllm.v1.request:Request", "from_engine_core_request", "request_resize.py"),
    ("vllm.v1.worker.gpu_worker:Worker", "initialize_from_config", "worker.py"),
    ("vllm.v1.worker.gpu_worker:Worker", "determine_available_memory", "worker.py"),
    ("vllm.v1.worker.gpu_worker:Worker", "get_model", "worker.py"),
    ("vllm.v1.attention.backends.cpu_attn:CPUAttentionBackendImpl", "do_kv_cache_update",
     "kv_inject.py"),
    ("vllm.v1.core.kv_cache_manager:KVCacheBlocks", "get_block_ids", "connector.py"),
)
"""(owner, attribute, the file that uses it)."""

OPTIONAL: tuple[tuple[str, str], ...] = (
    ("vllm._custom_ops", "cpu_attn_reshape_and_cache"),
    ("vllm._custom_ops", "cpu_attn_get_scheduler_metadata"),
    ("vllm._custom_ops", "cpu_attention_with_kv_cache"),
    ("vllm.v1.attention.backends.cpu_attn", "_get_attn_isa"),
    ("vllm.v1.attention.backends.fa_utils", "get_flash_attn_version"),
    ("vllm.vllm_flash_attn", "flash_attn_varlen_func"),
    ("vllm.model_executor.custom_op", "CustomOp"),
    ("vllm.model_executor.layers.layernorm", "RMSNorm"),
    ("vllm.model_executor.layers.activation", "SiluAndMul"),
)
"""(module, attribute) of fast paths: attention in cpu_attention.py and flash_attention.py (without
it, torch's), and in fused_ops.py modules whose ``_forward_method`` is replaced (without it, their
own).
The rotary buffer ``cos_sin_cache``, also in fused_ops.py, is looked for on the loaded model when
the engine starts (worker_side.py): without it, kept tokens get compact positions, which the log
and every report say."""


@dataclass(frozen=True)
class Finding:
    """One check: what was looked at, whether it fits, and what was seen."""

    name: str
    ok: bool
    detail: str


def check() -> list[Finding]:
    """Compare the installed vLLM with what the plug-in was written for.

    Raises:
        ImportError: vLLM is not installed.
    """
    findings = [_version()]
    base = _load("vllm.distributed.kv_transfer.kv_connector.v1.base:KVConnectorBase_V1")
    for name, expected in HOOKS.items():
        method = getattr(base, name, None)
        seen = tuple(inspect.signature(method).parameters) if method else ()
        findings.append(Finding(f"hook {name}", seen == expected, f"({', '.join(seen)})"))
    for owner, attribute, used_in in PRIVATE:
        try:
            ok = hasattr(_load(owner), attribute)
        except (ImportError, AttributeError):
            ok = False
        where = f"used in qm_vllm/engine/{used_in}"
        findings.append(Finding(f"{owner.replace(':', '.')}.{attribute}", ok, where))
    findings.append(_resize())
    return findings


def missing_optional() -> list[str]:
    """Names in :data:`OPTIONAL` that this machine lacks (the other platform's, usually)."""
    missing = []
    for module, attribute in OPTIONAL:
        try:
            _load(f"{module}:{attribute}")
        except (ImportError, AttributeError):
            missing.append(f"{module}.{attribute}")
    return missing


def require() -> None:
    """Raise RuntimeError, with one sentence, if the installed vLLM does not fit."""
    bad = [finding for finding in check() if not finding.ok]
    if bad:
        seen = "; ".join(f"{finding.name}: {finding.detail}" for finding in bad)
        raise RuntimeError(
            f"qm_vllm supports vLLM {_text(MIN_VERSION)} up to, not including, "
            f"{_text(BELOW_VERSION)}, and this one does not fit ({seen}); install a supported "
            "version or start the engine without engine_args()"
        )


def _version() -> Finding:
    import vllm

    # Not importlib.metadata: the CPU build is installed under another distribution name.
    parts = tuple(int(p) for p in vllm.__version__.split("+")[0].split(".")[:2] if p.isdigit())
    return Finding("vLLM version", MIN_VERSION <= parts < BELOW_VERSION, vllm.__version__)


def _resize() -> Finding:
    from qm_vllm.engine.request_resize import self_check

    try:
        problem = self_check()
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
    return Finding("resizing a request", problem is None, problem or "equal to a fresh request")


def _load(path: str) -> object:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def _text(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
