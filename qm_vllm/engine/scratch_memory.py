"""Device memory that jobs need beside the KV cache, which vLLM's profiling cannot see."""

from __future__ import annotations

from dataclasses import dataclass

from qm_vllm.config import QuickMergeConfig
from qm_vllm.layers import encoder_depth, window_layers


@dataclass(frozen=True)
class DecoderShape:
    """Sizes of one rank's part of the decoder."""

    hidden_size: int
    num_layers: int
    num_kv_heads: int
    head_size: int
    bytes_per_value: int


def scratch_bytes(config: QuickMergeConfig, shape: DecoderShape, num_tokens: int) -> int:
    """Bytes for one running job of ``num_tokens`` and ``max_live_jobs`` undelivered results.

    A running job holds three copies of the states (stream, residual, merged), one in float32
    for the entropy, keys and values of E layers and rotated keys of the layers whose attention
    is read; an undelivered one holds K positions of all layers. An upper estimate: attention
    workspace of one layer is included as one more layer of keys and values.
    """
    depth = encoder_depth(config, shape.num_layers)
    pair = 2 * shape.num_kv_heads * shape.head_size * shape.bytes_per_value
    states = num_tokens * shape.hidden_size * (3 * shape.bytes_per_value + 4)
    read = min(depth, window_layers(config, shape.num_layers))
    encoder = num_tokens * ((depth + 1) * pair + read * pair // 2)
    if config.max_kept is not None:
        kept = min(num_tokens, config.max_kept)
    elif config.ratio is None and (config.alpha is not None or config.max_error is not None):
        kept = num_tokens
    else:
        kept = round(num_tokens * (config.ratio or config.DEFAULT_RATIO))
    delivery = config.max_live_jobs * kept * shape.num_layers * pair
    return states + encoder + (delivery if config.delivery == "inject" else 0)
