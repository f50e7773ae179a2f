"""The user's cache folder, and how a folder in it comes into being whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from qm_vllm.errors import UserError


def cache_folder() -> Path:
    """Where converted models are kept: QM_VLLM_CACHE, else XDG_CACHE_HOME or ~/.cache."""
    named = os.environ.get("QM_VLLM_CACHE")
    if named:
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "qm_vllm"


def build_once(
    target: Path, is_complete: Callable[[Path], bool], build: Callable[[Path], None]
) -> Path:
    """Fills a folder of the cache under its final name, or leaves nothing there.

    Args:
        target: the folder's final name.
        is_complete: whether a folder holds all that is needed.
        build: writes the files into an empty folder.

    Raises:
        UserError: the cache folder cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise UserError(
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
