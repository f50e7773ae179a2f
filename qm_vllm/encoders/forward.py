"""One forward pass of a frozen transformers model: from its output to checked layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qm_vllm.encoders.base import EncoderError


def freeze(model: Any, device: torch.device) -> Any:
    """The model on the device, in eval mode, without gradients."""
    return model.to(device).eval().requires_grad_(False)


def sizes(config: Any, name: str) -> tuple[int, int]:
    """Number of layers L and width D of a model's config.

    Raises:
        EncoderError: the config does not name them.
    """
    layers = getattr(config, "num_hidden_layers", None)
    width = getattr(config, "hidden_size", None)
    if not isinstance(layers, int) or not isinstance(width, int) or layers < 1:
        raise EncoderError(
            f"{name}: a config of type {config.model_type!r} gives num_hidden_layers {layers!r} "
            f"and hidden_size {width!r}; name an encoder built of layers of one width"
        )
    return layers, width


@torch.inference_mode()
def _hidden_states(model: Any, inputs: dict[str, Any]) -> Any:
    output = model(**inputs, output_hidden_states=True, return_dict=True)
    return getattr(output, "hidden_states", None)


def run_layers(
    model: Any, name: str, num_layers: int, hidden_size: int, **inputs: Any
) -> list[Tensor]:
    """States of all layers for a batch of inputs: L + 1 tensors [B, n, D].

    Raises:
        EncoderError: the model gives no hidden states, or others than L + 1 of one shape.
    """
    states = _hidden_states(model, inputs)
    if not states:
        raise EncoderError(
            f"{name}: the forward of {type(model).__name__} returns no hidden_states although it "
            "was asked for them; name a model that returns them"
        )
    shapes = [tuple(layer.shape) for layer in states]
    first = shapes[0]
    if len(set(shapes)) > 1 or len(first) != 3 or first[2] != hidden_size:
        raise EncoderError(
            f"{name}: {type(model).__name__} gives hidden states of the shapes "
            f"{sorted(set(shapes))}, but layers of one shape [batch, tokens, {hidden_size}] are "
            "needed; name an encoder whose layers all keep tokens and width"
        )
    if len(states) != num_layers + 1:
        raise EncoderError(
            f"{name}: {type(model).__name__} gives {len(states)} hidden states of shape "
            f"{first}, but its config has {num_layers} layers, so {num_layers + 1} were expected"
        )
    return list(states)


def own_rows(states: list[Tensor], name: str, keep: slice, start: int) -> tuple[Tensor, ...]:
    """The kept tokens of every layer as ordinary tensors [n, D]; empties the list.

    Copies, because a view would keep the dropped tokens alive and, being an inference tensor,
    could not be trained on.

    Args:
        states: L + 1 tensors [B, n, D]; B and n become one axis before anything is kept.
        start: index of the first kept token in the source, for the error's text.

    Raises:
        EncoderError: a state of the exit is NaN or infinite.
    """
    rows: list[Tensor] = []
    while states:
        rows.append(states.pop(0).flatten(0, 1)[keep].clone())
    check_finite(rows[-1], f"{name}: the states at the exit", start, "; load it with dtype float32")
    return tuple(rows)


def check_finite(rows: Tensor, what: str, start: int = 0, advice: str = "") -> None:
    """Refuse rows [n, D] with NaN or infinite values.

    Args:
        start: index of row 0 in the whole source.

    Raises:
        EncoderError: names the first bad row, its value and column, and the shape.
    """
    if torch.isfinite(rows.sum(dtype=torch.float32)):
        return  # a bad value always shows in the sum; a sum that overflows is looked at below
    bad = ~torch.isfinite(rows)
    if not bad.any():
        return
    row = int(bad.any(dim=1).nonzero()[0])
    column = int(bad[row].nonzero()[0])
    raise EncoderError(
        f"{what} hold {float(rows[row, column])} in row {start + row}, column {column} "
        f"(rows {start} to {start + rows.shape[0] - 1}, shape {tuple(rows.shape)}, "
        f"{str(rows.dtype).removeprefix('torch.')}){advice}"
    )
