"""What a compression job takes beside the KV blocks that it leases: plain arithmetic.

Keys and values of the layers below E go into leased blocks of the KV cache, at the prompt's own
price; what is counted here are the states of the prompt and the workspace of one layer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from qm_vllm.compress import choose_budget, in_blocks, needs, workspace_bytes
from qm_vllm.config import QuickMergeConfig
from qm_vllm.layers import WINDOW_QUERIES, encoder_depth, window_layers
from qm_vllm_patches.kv_cache import ROWS

LEAST = 64 << 20
"""Bytes for jobs where they are not taken from the KV cache, however small that is."""
AT_ONCE = 8 << 20
"""Bytes of attention weights of the last queries that one call makes; at least one head's."""


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
    num_heads: int
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


def job_bytes(
    config: QuickMergeConfig, shape: DecoderShape, num_tokens: int, kept: int | None = None
) -> int:
    """Bytes that a job of so many tokens holds at its peak, an upper estimate.

    The states, N x D, and the larger of two things: one layer's keys and values for its attention
    (these make room for a layer that is read back, and its rotated keys) with the attention weights
    of the last queries; and what choosing and merging take, the merged states included. Scores
    that need entropies are computed while a layer's keys and values are there.

    With the prefill delivery, keys and values of the layers whose attention is read stay; where the
    cache is quantised, those of all layers below E wait beside it. The activations of a chunk are
    not counted: vLLM's own profiling leaves room for as many.

    Args:
        kept: K or a bound on it, where it is known.
    """
    if config.delivery == "native":
        return native_bytes(config, shape, num_tokens, num_tokens if kept is None else kept)
    wanted, depth = needs(config), encoder_depth(config, shape.num_layers)
    layer = num_tokens * (shape.pair + shape.pair // 2) + 2 * min(num_tokens, ROWS) * shape.pair
    row = 4 * WINDOW_QUERIES * num_tokens  # one head's weights in float32
    looking = 3 * min(max(AT_ONCE, row), row * shape.num_heads) if "attention" in wanted else 0
    choosing = workspace_bytes(
        num_tokens, shape.hidden_size, shape.value_bytes, config=config, kept=kept
    )
    if wanted & {"entropy", "incoming"}:
        choosing += layer
    total = num_tokens * shape.hidden_size * shape.value_bytes + max(layer + looking, choosing)
    if config.delivery == "prefill" and "attention" in wanted:
        layers = min(depth, window_layers(config, shape.num_layers))
        total += num_tokens * shape.pair * layers
    if config.delivery != "prefill" and shape.stashes:
        total += num_tokens * shape.pair * depth
    return total


def native_bytes(
    config: QuickMergeConfig, shape: DecoderShape, num_tokens: int, kept: int
) -> int:
    """The same for a prompt that vLLM prefills: what compacting it holds.

    The queries of the prompt's end, and the larger of two things: one layer's keys (and its values
    where they count) with the attention weights of these queries or what stands out of the keys,
    and one layer's kept rows twice.
    """
    heads, standing_out = config.head_share > 0, "leverage" in needs(config)
    layers = window_layers(config, shape.num_layers)
    queries = WINDOW_QUERIES * shape.num_heads * shape.head_size * shape.value_bytes * layers
    row = 4 * WINDOW_QUERIES * num_tokens
    looking = 3 * min(max(AT_ONCE, row), row * shape.num_heads)
    if standing_out:  # keys in float32: as they are, centred, and twice while they are solved for
        looking = 5 * 4 * num_tokens * shape.num_kv_heads * shape.head_size
    keys = num_tokens * (shape.pair if heads or standing_out else shape.pair // 2)
    keys += 2 * min(num_tokens, ROWS) * shape.pair
    scores = 3 * 8 * 6 * num_tokens  # three views in float64, a few times
    if heads:  # of each KV head: scores and places, their orders in int64, a few times
        own = (4 * 4 + 8 * 4) * num_tokens * shape.num_kv_heads
        scores = max(scores, own + keys + 3 * kept * shape.pair)
    return queries + max(keys + looking, scores, 4 * kept * shape.pair)


def memory_to_keep(
    config: QuickMergeConfig, shape: DecoderShape, available: int, *, max_model_len: int,
    block_size: int, widest: float = 1.0,
) -> int:
    """Bytes to set aside for jobs of the memory that the KV cache would get.

    What the longest prompt's job needs, but at most the configured share, and never so much that
    vLLM could not hold one prompt of full length: where plain vLLM starts, this starts too.

    Args:
        available: bytes that plain vLLM would give to the KV cache.
        max_model_len: tokens of the longest prompt that vLLM can read.
        block_size: tokens of a KV block.
        widest: of K, what a layer keeps at most.
    """
    longest = config.max_source_tokens or max_model_len
    share = int(config.job_memory_share * available)
    wanted = min(_bytes_of(config, shape, longest, widest), share)
    # One block more than the prompt's is vLLM's own.
    held = min(longest, max_model_len)
    spare = available - (-(-held // block_size) + 1) * block_size * shape.token_bytes
    # Below 0 vLLM does not start, or finds a shorter length by itself (max_model_len="auto").
    return wanted if spare < 0 else min(wanted, spare)


def _bytes_of(
    config: QuickMergeConfig, shape: DecoderShape, tokens: int, widest: float
) -> int:
    kept = min(tokens, int(widest * bound_kept(config, tokens)))
    return job_bytes(config, shape, tokens, kept)


def longest_job(
    config: QuickMergeConfig, shape: DecoderShape, max_bytes: int, limit: int,
    widest: float = 1.0,
) -> int:
    """Tokens of the longest prompt whose job holds no more than so many bytes, up to a limit."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        if _bytes_of(config, shape, middle, widest) <= max_bytes:
            low = middle
        else:
            high = middle - 1
    return low


def bound_kept(config: QuickMergeConfig, num_tokens: int, protected: int = 0) -> int:
    """K, or the most that it can be where it depends on the content; not rounded to blocks.

    Raises:
        ConfigError: max_kept cannot hold the protected positions.
    """
    bound = replace(config, alpha=None, max_error=None)
    measured = config.alpha is not None or config.max_error is not None
    if measured and config.ratio is None and config.max_kept is None:
        bound = replace(bound, ratio=1.0)
    return choose_budget(bound, num_tokens, None, protected)


def most_kept(
    config: QuickMergeConfig, num_tokens: int, protected: int, block_size: int | None
) -> int:
    """:func:`bound_kept`, rounded to blocks of the KV cache; None: as it is.

    Raises:
        ConfigError: max_kept cannot hold the protected positions.
    """
    bound = bound_kept(config, num_tokens, protected)
    return in_blocks(config, bound, num_tokens, protected, block_size)
