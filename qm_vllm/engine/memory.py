"""What a compression job takes beside the KV blocks that it leases: plain arithmetic.

Keys and values of the layers below E go into leased blocks of the KV cache, at the prompt's own
price; what is counted here are the states of the prompt and the workspace of one layer.
"""

from __future__ import annotations

from dataclasses import dataclass

from qm_vllm.compress import needs
from qm_vllm.config import QuickMergeConfig
from qm_vllm.layers import encoder_depth, window_layers


@dataclass(frozen=True)
class DecoderShape:
    """Sizes of one rank's part of the decoder.

    Attributes:
        value_bytes: of a number in the states. cache_bytes: of one in the KV cache.
        stashes: keys and values of the layers below E must wait beside the cache, because what
            the cache stores is not what was computed (quantised caches).
    """

    hidden_size: int
    num_layers: int
    num_kv_heads: int
    head_size: int
    value_bytes: int
    cache_bytes: int
    stashes: bool = False

    @property
    def pair(self) -> int:
        """Bytes of one token's key and value in one layer, as computed."""
        return 2 * self.num_kv_heads * self.head_size * self.value_bytes

    @property
    def token_bytes(self) -> int:
        """Bytes of one token in the KV cache, all layers."""
        return 2 * self.num_kv_heads * self.head_size * self.cache_bytes * self.num_layers


def job_bytes(config: QuickMergeConfig, shape: DecoderShape, num_tokens: int) -> int:
    """Bytes that a job of so many tokens holds at its peak, an upper estimate.

    - the states: N x D;
    - one layer's keys and values for its attention, N pairs; they make room for one layer's that
      are read back, and its rotated keys;
    - where the score needs entropies, a normalised copy of the states in float32;
    - with the prefill delivery, keys and values of the layers whose attention is read;
    - where the cache is quantised, keys and values of all layers below E.

    The activations of a chunk are not counted: vLLM's own profiling leaves room for as many.
    """
    depth = encoder_depth(config, shape.num_layers)
    states = shape.hidden_size * shape.value_bytes
    per_token = states + shape.pair + shape.pair // 2
    wanted = needs(config)
    if wanted & {"entropy", "incoming"}:
        per_token += 4 * shape.hidden_size
    if config.delivery == "prefill" and "attention" in wanted:
        per_token += shape.pair * min(depth, window_layers(config, shape.num_layers))
    if config.delivery == "inject" and shape.stashes:
        per_token += shape.pair * depth
    return num_tokens * per_token


def memory_to_keep(
    config: QuickMergeConfig, shape: DecoderShape, available: int, *, longest: int, block_size: int
) -> int:
    """Bytes to set aside for jobs of the memory that the KV cache would get.

    What the longest prompt's job needs, but at most the configured share, and never so much that
    vLLM could not hold one prompt of full length: where plain vLLM starts, this starts too.

    Args:
        available: bytes that plain vLLM would give to the KV cache.
        longest: tokens of the longest prompt.
        block_size: tokens of a KV block.
    """
    share = int(config.job_memory_share * available)
    wanted = min(job_bytes(config, shape, longest), share)
    # One block more than the prompt's is vLLM's own.
    spare = available - (-(-longest // block_size) + 1) * block_size * shape.token_bytes
    # Below 0 vLLM does not start, or finds a shorter length by itself (max_model_len="auto").
    return wanted if spare < 0 else min(wanted, spare)


def longest_job(config: QuickMergeConfig, shape: DecoderShape, max_bytes: int) -> int:
    """Tokens of the longest prompt whose job holds no more than so many bytes."""
    return max_bytes // job_bytes(config, shape, 1)
