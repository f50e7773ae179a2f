"""Features of whole videos, one ``.pt`` file each, and the rows of a clip in them."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from qm_vllm_eval.localisation import Span

MISSING_ROWS = 4
"""Rows that a video's features may lack at its end: the last window of frames has to be whole."""


class UnfitError(Exception):
    """What is wrong with one part of the data; becomes the reason of its rows."""


def load_features(folder: Path, uid: str, width: int | None) -> Tensor:
    """The tensor [T, D] in ``UID.pt``, on the CPU, of whatever floating-point type it has.

    Pickled objects other than tensors are refused and never executed.

    Args:
        width: D that it must have; None: any.

    Raises:
        UnfitError: no such file, or it holds something else.
    """
    file = folder / f"{uid}.pt"
    if file.parent != folder:
        raise UnfitError(f"the video_uid {uid!r} is no file name")
    try:
        if not file.is_file():
            raise UnfitError(f"there are no features {file.name} in {folder}")
        held = torch.load(file, map_location="cpu", weights_only=True)
    except UnfitError:
        raise
    except Exception as error:  # torch has a dozen ways to say that a file is broken
        first = (str(error).splitlines() or [""])[0][:120]
        raise UnfitError(f"{file.name} cannot be read: {type(error).__name__}: {first}") from error
    if not isinstance(held, Tensor):
        raise UnfitError(f"{file.name} holds a {type(held).__name__}, not a tensor [T, D]")
    if held.ndim != 2 or 0 in held.shape or not held.dtype.is_floating_point:
        raise UnfitError(f"{file.name} holds {held.dtype} {tuple(held.shape)}, not floats [T, D]")
    if held.layout != torch.strided or held.device.type != "cpu":
        raise UnfitError(f"{file.name} holds {held.layout} on {held.device}, not plain rows [T, D]")
    if width is not None and held.shape[1] != width:
        raise UnfitError(f"{file.name} has features of width {held.shape[1]}, not {width}")
    return held.detach()


def cut_features(whole: Tensor, span: Span, per_second: float, uid: str) -> Tensor:
    """The rows [T, D] float32 of a clip: every row that the clip touches.

    Args:
        span: start and end of the clip in seconds of the video.

    Raises:
        UnfitError: more than :data:`MISSING_ROWS` rows are missing, or one is not finite.
    """
    low = max(math.floor(span[0] * per_second + 1e-6), 0)
    high = max(math.ceil(span[1] * per_second - 1e-6), low + 1)
    part = whole[low:high].float()
    if high - low - len(part) > MISSING_ROWS or not len(part):
        raise UnfitError(f"{uid}.pt has {len(whole)} rows, the clip needs {low} to {high}")
    if not torch.isfinite(part).all():
        raise UnfitError(f"{uid}.pt holds NaN or infinity in rows {low} to {high}")
    return part.clone()
