"""Small tensors on their way to the device."""

from __future__ import annotations

import torch


def upload(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A CPU tensor's copy on the device, which the host does not wait for.

    A plain copy from pageable memory waits until the device has done all that was asked of it.
    """
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
