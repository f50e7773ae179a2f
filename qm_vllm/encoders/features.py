"""Precomputed features: a file of rows, or a folder with one file per id.

Files are .pt (a tensor, read with weights_only), .npy (memory-mapped, no pickle) or
.safetensors. Nothing in them is executed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qm_vllm.encoders.base import EncoderError, FrozenEncoder, Window
from qm_vllm.encoders.forward import check_finite

SUFFIXES = (".pt", ".npy", ".safetensors")
DEFAULT_WINDOW = 1024
KEY = "features"  # which tensor of a file with several


@dataclass(frozen=True)
class _Rows:
    """An open file: its shape, [T, D] once checked, and a way to read rows [low, high)."""

    shape: tuple[int, ...]
    read: Callable[[int, int], Tensor]


class FeatureFiles(FrozenEncoder):
    """Rows of features [T, D] as the states of T tokens; there is one "layer", so L is 0.

    The source is an id (a file's name in the folder without its ending), the Path of any file of
    the same width, or None where there is one file only. Files stay on disk: a window's rows are
    read when it is asked for, except .pt files in PyTorch's old format, which are read whole.
    """

    num_layers = 0

    def __init__(
        self,
        path: Path,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Opens the file, or the folder's first one, to learn the width.

        Args:
            path: a file, or a folder with files of one width.
            dtype: type of the states; None: as saved.

        Raises:
            EncoderError: no file of a known kind, or one that holds no rows of features.
        """
        self.name = path.name or path.resolve().name
        self.device = device or torch.device("cpu")
        self.dtype = dtype
        files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.is_file())
        known = [file for file in files if file.suffix in SUFFIXES]
        if not known:
            held = f" but {files[0].name}" if files else ""
            raise EncoderError(
                f"{self.name} holds no file of features{held}; give {', '.join(SUFFIXES)} files "
                "of shape [T, D], or a folder with a model and its config.json"
            )
        self.files: dict[str, Path] = {}
        for file in known:
            if file.stem in self.files:
                raise EncoderError(
                    f"{self.name} holds {file.name} and {self.files[file.stem].name}, two files "
                    f"for the id {file.stem!r}; keep one"
                )
            self.files[file.stem] = file
        self.hidden_size = _open(known[0]).shape[1]

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids that can be streamed, sorted."""
        return tuple(sorted(self.files))

    def _windows(self, source: Any, window: int | None) -> Iterator[Window]:
        file = self._file(source)
        rows = _open(file)
        if rows.shape[1] != self.hidden_size:
            raise EncoderError(
                f"{file.name} has the shape {rows.shape}, but the features of {self.name} are "
                f"{self.hidden_size} wide; keep files of one width in a folder"
            )
        return self._read(file, rows, DEFAULT_WINDOW if window is None else window)

    def _read(self, file: Path, rows: _Rows, size: int) -> Iterator[Window]:
        total = rows.shape[0]
        for low in range(0, total, size):
            yield self._window(file, rows, low, min(total, low + size))

    def _window(self, file: Path, rows: _Rows, low: int, high: int) -> Window:
        states = rows.read(low, high)
        check_finite(states, f"the features in {file.name}", low, "; compute them again or drop it")
        return Window(
            layers=(states.to(self.device, self.dtype),),
            start=low,
            token_ids=None,
            special=torch.zeros(high - low, dtype=torch.bool, device=self.device),
        )

    def _file(self, source: Any) -> Path:
        if source is None and len(self.files) == 1:
            return next(iter(self.files.values()))
        if isinstance(source, Path) and source.suffix in SUFFIXES and source.is_file():
            return source
        if isinstance(source, str) and source in self.files:
            return self.files[source]
        some = ", ".join(self.ids[:3]) + (", ..." if len(self.files) > 3 else "")
        raise EncoderError(
            f"{self.name} has no features with the id {source!r}; it has {len(self.files)}: {some}"
        )


def _open(file: Path) -> _Rows:
    readers = {".pt": _open_torch, ".npy": _open_numpy, ".safetensors": _open_safetensors}
    try:
        rows, kind = readers[file.suffix](file)
    except EncoderError:
        raise
    except Exception as error:  # each reader has a dozen ways to say that a file is broken
        raise EncoderError(_broken(file, error)) from error
    shape = tuple(rows.shape)
    if len(shape) != 2 or 0 in shape:
        empty = " and is empty" if 0 in shape else ""
        raise EncoderError(
            f"{file.name} has the shape {shape}{empty}; give features of shape [T, D] with at "
            "least one row and one column"
        )
    if not kind.is_floating_point:
        raise EncoderError(
            f"{file.name} has the shape {shape} and holds {str(kind).removeprefix('torch.')}; "
            "save features as float32, float16 or bfloat16"
        )
    return rows


def _open_torch(file: Path) -> tuple[_Rows, torch.dtype]:
    try:
        held = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap can only be used" not in str(error):
            raise
        held = torch.load(file, map_location="cpu", weights_only=True)  # the format before 1.6
    if isinstance(held, dict):
        held = held[_key(file, list(held))]
    if not isinstance(held, Tensor):
        raise EncoderError(
            f"{file.name} holds a {type(held).__name__}; save one tensor of shape [T, D]"
        )
    return _Rows(tuple(held.shape), lambda low, high: held[low:high].detach().clone()), held.dtype


def _open_numpy(file: Path) -> tuple[_Rows, torch.dtype]:
    held = np.load(file, mmap_mode="r", allow_pickle=False)
    if held.dtype.byteorder == ">" or held.dtype.kind not in "fiub":
        raise EncoderError(
            f"{file.name} has the shape {held.shape} and holds {held.dtype}; save features as "
            "float32 or float16 in the machine's own byte order"
        )
    kind = torch.from_numpy(np.zeros(0, held.dtype)).dtype
    return _Rows(held.shape, lambda low, high: torch.from_numpy(np.array(held[low:high]))), kind


def _open_safetensors(file: Path) -> tuple[_Rows, torch.dtype]:
    from safetensors import safe_open

    held = safe_open(str(file), framework="pt")
    part = held.get_slice(_key(file, list(held.keys())))
    shape = tuple(part.get_shape())
    kind = part[:0].dtype if shape else torch.float32
    return _Rows(shape, lambda low, high: part[low:high].clone()), kind


def _key(file: Path, names: list[Any]) -> Any:
    if len(names) == 1:
        return names[0]
    if KEY in names:
        return KEY
    raise EncoderError(
        f"{file.name} holds {len(names)} tensors ({', '.join(map(str, names[:3]))}); keep one, or "
        f"name the one to read {KEY!r}"
    )


def _broken(file: Path, error: Exception) -> str:
    size = file.stat().st_size if file.is_file() else 0
    text = f"{type(error).__name__}: {error}"
    if "pickle" in text.lower() or "Python objects" in text or "WeightsUnpickler" in text:
        return (
            f"{file.name} ({size} bytes) holds pickled objects, which are not loaded because "
            "they may run code; save a plain tensor or array of shape [T, D]"
        )
    return (
        f"{file.name} ({size} bytes) cannot be read ({text.splitlines()[0][:120].rstrip('.')}); "
        "it is damaged or of another kind than its ending says: write it again"
    )
