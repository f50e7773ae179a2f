"""The presses of kvpress that the bench runs, and how they are driven. Needs kvpress.

Facts about kvpress 0.5.5 that this file builds on, from its sources: a prefill press works in a
forward hook behind each layer's attention, after the layer has seen the whole prompt, so that
no layer's input depends on what another layer dropped; a scorer press keeps
``max(1, int(n * (1 - compression_ratio)))`` entries (``kvpress.utils.compute_n_kept``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from kvpress import (  # type: ignore[import-not-found,unused-ignore]
    BasePress,
    CompactorPress,
    ExpectedAttentionPress,
    KeyDiffPress,
    KnormPress,
    MergingPress,
    PyramidKVPress,
    SnapKVPress,
    StreamingLLMPress,
    TOVAPress,
)
from torch import Tensor
from transformers import DynamicCache

from qm_vllm_eval.peers import kvzip
from qm_vllm_eval.peers.kvzip import ScoredKVzip
from qm_vllm_eval.peers.prefill import KV, Kept, Prefill, entries, without_masked

WINDOW, SINKS = 64, 4  # defaults of SnapKVPress, ExpectedAttentionPress and StreamingLLMPress
PYRAMID_WINDOW, PYRAMID_BETA = 8, 20  # PyramidKV, arXiv:2406.02069; beta as in kvpress

SKETCH_SEED = 0  # of Compactor's random projections


def compress(model: Any, press: Any, prefill: Prefill) -> Kept:
    """What a press leaves of a prefill, through its public ``compress`` where that is the same.

    A press with a hook or a context of its own runs the model again: :func:`compress_canonically`.
    KVzip's repeats the prompt behind the prefill: :func:`kvzip.compress`.
    """
    if isinstance(press, ScoredKVzip):
        return kvzip.compress(model, press, prefill)
    if not serves_from_prefill(press):
        return compress_canonically(model, press, prefill.ids)
    kept: KV = []
    with torch.inference_mode(), _seeded(), press(model):  # its hooks see no forward pass in here
        for layer, (keys, values), (kwargs, attentions) in zip(
            model.model.layers, prefill.kv, prefill.calls, strict=True
        ):
            states = kwargs["hidden_states"]
            kept.append(press.compress(layer.self_attn, states, keys, values, attentions, kwargs))
    return Kept(kept)


def compress_canonically(model: Any, press: Any, ids: Tensor) -> Kept:
    """What a press leaves of token ids [1, N], in the way that kvpress documents."""
    cache = DynamicCache()
    with torch.inference_mode(), _seeded(), press(model):
        model.model(input_ids=ids, past_key_values=cache)
    return without_masked(model, entries(cache))


@contextmanager
def _seeded() -> Iterator[None]:
    """The same random numbers for a press, whatever was drawn before it."""
    with torch.random.fork_rng():
        torch.manual_seed(SKETCH_SEED)
        yield


def serves_from_prefill(press: Any) -> bool:
    """Whether one plain prefill tells a press all that a run of its own would."""
    kind = type(press)
    return bool(kind.forward_hook is BasePress.forward_hook and kind.__call__ is BasePress.__call__)


def build_press(name: str, length: int, keep: int, model: Any) -> tuple[Any, str]:
    """A press that keeps ``keep`` of ``length`` entries per layer, and its settings in words.

    pyramidkv keeps at most that many as a mean over layers, as close as its rounding allows;
    kvzip as a mean over the heads of each layer, kvzip_global as one over all heads and layers.

    Raises:
        ValueError: unknown press, or not 1 <= keep <= length.
    """
    if name not in PRESSES:
        raise ValueError(f"unknown press {name!r}; known: {', '.join(PRESSES)}")
    if not 1 <= keep <= length:
        raise ValueError(f"{keep} of {length} entries cannot be kept")
    press, settings = PRESSES[name](length, keep)
    if isinstance(press, PyramidKVPress):
        _fit_pyramid(press, length, keep, model)
    elif isinstance(press, ScoredKVzip):  # it rounds the number of dropped entries down
        press.compression_ratio = 0.0 if keep == length else 1.0 - (keep - 1e-6) / length
    else:
        press.compression_ratio = 0.0 if keep == length else 1.0 - (keep + 0.5) / length
    return press, settings


def _window(length: int, keep: int) -> int:
    """SnapKV always keeps its window of queries: no more than half of what may be kept."""
    return max(1, min(WINDOW, keep // 2, length - 1))


def _snapkv(length: int, keep: int) -> tuple[Any, str]:
    window = _window(length, keep)
    return SnapKVPress(window_size=window), f"window_size=min({WINDOW}, K/2), kernel_size=5"


def _merging_snapkv(length: int, keep: int) -> tuple[Any, str]:
    press, settings = _snapkv(length, keep)
    merging = "similarity_threshold=0, merge_fraction=1: values into kept neighbours, keys kept"
    return MergingPress(press=press), f"MergingPress(SnapKVPress({settings})), {merging}"


def _pyramidkv(length: int, keep: int) -> tuple[Any, str]:
    # kvpress falls back to uniform budgets unless the top layer's K / beta is a whole window.
    window = max(1, min(WINDOW, max(PYRAMID_WINDOW, keep // (PYRAMID_BETA + 1)), keep // 2))
    window = min(window, length - 1)
    beta = max(1, min(PYRAMID_BETA, (keep - 1) // window))
    settings = (
        f"beta={PYRAMID_BETA} and window_size from {PYRAMID_WINDOW} to {WINDOW}, both as large as "
        "fits K, kernel_size=5"
    )
    return PyramidKVPress(window_size=window, beta=beta), settings


def _expected_attention(length: int, keep: int) -> tuple[Any, str]:
    sinks = min(SINKS, keep, length - 1)
    press = ExpectedAttentionPress(n_sink=sinks)
    return press, f"n_future_positions=512, n_sink={sinks}, use_covariance, use_vnorm, epsilon=0"


def _streaming_llm(length: int, keep: int) -> tuple[Any, str]:
    sinks = min(SINKS, keep, length - 1)
    return StreamingLLMPress(n_sink=sinks), f"n_sink={sinks}, original positions"


def _compactor(_length: int, _keep: int) -> tuple[Any, str]:
    settings = "sink_size_start=8, sink_size_end=4, chunk_size=256, sketch_dimension=48, "
    return CompactorPress(), f"{settings}blending=share dropped, torch seed {SKETCH_SEED}"


def _kvzip(layerwise: bool) -> tuple[Any, str]:
    budget = (
        "layerwise=True: K entries as a mean over the heads of each layer"
        if layerwise
        else "layerwise=False, its default: K entries as a mean over the heads of all layers"
    )
    settings = f"{budget}; n_sink={SINKS}, chunk_size=2048, kvzip_plus_normalization=False; "
    what = "all that it is shown is repeated, behind the template's head where the prompt has it"
    press = ScoredKVzip(layerwise=layerwise, n_sink=SINKS)
    return press, f"{settings}{what}; masked entries taken out"


PRESSES: dict[str, Callable[[int, int], tuple[Any, str]]] = {
    "snapkv": _snapkv,
    "knorm": lambda _length, _keep: (KnormPress(), "no settings"),
    "expected_attention": _expected_attention,
    "pyramidkv": _pyramidkv,
    "merging_snapkv": _merging_snapkv,
    "keydiff": lambda _length, _keep: (KeyDiffPress(), "no settings, whole prompt at once"),
    "compactor": _compactor,
    "kvzip": lambda _length, _keep: _kvzip(layerwise=True),
    "kvzip_global": lambda _length, _keep: _kvzip(layerwise=False),
    "tova": lambda _length, _keep: (TOVAPress(), "no settings"),
    "streaming_llm": _streaming_llm,
}


def _fit_pyramid(press: Any, length: int, keep: int, model: Any) -> None:
    layers = [layer.self_attn for layer in model.model.layers]
    wanted = float(keep)
    press.compression_ratio = 0.0
    while keep < length:
        press.compression_ratio = 1.0 - wanted / length
        budgets = [press.get_layer_budget(layer, length) for layer in layers]
        if sum(budgets) <= keep * len(layers):
            return
        wanted -= 0.02
