"""What the plug-in takes of an engine's memory: by hand, and on cards that nobody has here.

The KV cache's arithmetic is vLLM's own: its page sizes and its check at start.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qm_vllm import QuickMergeConfig
from qm_vllm.compress import round_to_blocks, workspace_bytes
from qm_vllm.engine.memory import (
    DecoderShape,
    bound_kept,
    job_bytes,
    longest_job,
    memory_to_keep,
)

SMALL = DecoderShape(
    hidden_size=576, num_layers=30, num_heads=9, num_kv_heads=3, head_size=64, value_bytes=2,
    cache_bytes=2,
)
GIB = 1 << 30
BLOCK = 16


def test_terms_by_hand():
    """1,000 tokens: weights of the last 64 queries of 9 heads are all made at once."""
    wide = replace(SMALL, num_kv_heads=9, head_size=128)
    pair, states = 2 * 9 * 128 * 2, 1000 * 576 * 2
    layer, looking = 1000 * (pair + pair // 2) + 2 * 512 * pair, 3 * 4 * 64 * 9 * 1000
    assert job_bytes(QuickMergeConfig(), wide, 1000, 400) == states + layer + looking
    choosing = workspace_bytes(1000, 576, 2, config=QuickMergeConfig(), kept=400)
    assert job_bytes(QuickMergeConfig(), SMALL, 1000, 400) == states + choosing
    prefill = QuickMergeConfig(delivery="prefill", window_layers=2)
    assert job_bytes(prefill, wide, 1000, 400) == states + layer + looking + 1000 * 2 * pair
    aside = replace(wide, cache_bytes=1, stashes=True)
    deep = QuickMergeConfig(encoder_layers=20)
    assert job_bytes(deep, aside, 1000, 400) == states + layer + looking + 1000 * 20 * pair
    blind = QuickMergeConfig(query_visible=False)
    entropies = workspace_bytes(1000, 576, 2, config=blind, kept=400)
    assert job_bytes(blind, wide, 1000, 400) == states + layer + entropies


def test_attention_weights_are_bounded_for_long_prompts():
    def per_token(tokens: int) -> float:
        return job_bytes(QuickMergeConfig(), SMALL, tokens, 400) / tokens

    assert per_token(100_000) < 0.5 * per_token(1000)


@given(
    st.integers(0, 1 << 30), st.integers(1, 200_000),
    st.sampled_from([
        {}, {"query_visible": False}, {"delivery": "prefill"}, {"alpha": 0.5},
        {"delivery": "native"}, {"delivery": "native", "query_visible": False},
        {"delivery": "native", "query_visible": False, "head_share": 0.0},
    ]),
)
def test_the_longest_job_just_fits(memory, limit, options):
    config = QuickMergeConfig(**options)
    tokens = longest_job(config, SMALL, memory, limit)
    assert tokens <= limit
    for count, fits in ((tokens, True), (tokens + 1, False)):
        if 0 < count <= limit:
            held = job_bytes(config, SMALL, count, bound_kept(config, count))
            assert (held <= memory) is fits


@dataclass(frozen=True)
class Model:
    """A decoder and the bytes of its bfloat16 weights."""

    shape: DecoderShape
    weights: int


def model(
    hidden: int, layers: int, heads: int, kv_heads: int, head: int, billions: float
) -> Model:
    return Model(DecoderShape(hidden, layers, heads, kv_heads, head, 2, 2), int(billions * 2e9))


MODELS = {  # shapes and parameters as on their model cards
    "Llama-3.1-8B": model(4096, 32, 32, 8, 128, 8.03),
    "Qwen2.5-7B": model(3584, 28, 28, 4, 128, 7.62),
    "Qwen3-32B": model(5120, 64, 64, 8, 128, 32.8),
    "Qwen2.5-0.5B": model(896, 24, 14, 2, 64, 0.49),
}
MIB = 1 << 20
CARDS = {"24 GB": 24_564 * MIB, "80 GB": 81_559 * MIB}
"""What the driver reports of an RTX 4090 and of an H100."""
LENGTHS = (32_768, 131_072)
UTILISATION, ACTIVATIONS = 0.92, 1.5 * GIB
"""vLLM's default share of a card; room for a forward pass and CUDA graphs, equal for both."""
RATIO = 0.4
PAGE = Path(__file__).parents[2] / "docs" / "serving.md"
FIRST, LAST = "<!-- begin: source tokens -->", "<!-- end: source tokens -->"


class Kv:
    """vLLM's KV-cache arithmetic for a model on a card."""

    def __init__(self, shape: DecoderShape, longest: int) -> None:
        from vllm.v1.kv_cache_interface import FullAttentionSpec

        self.longest = longest
        self.spec = FullAttentionSpec(
            block_size=BLOCK, num_kv_heads=shape.num_kv_heads, head_size=shape.head_size,
            dtype=torch.bfloat16,
        )
        self.block_bytes = self.spec.page_size_bytes * shape.num_layers
        assert self.block_bytes == BLOCK * shape.token_bytes

    def blocks(self, available: int) -> int:
        """Usable blocks; vLLM holds one back."""
        return available // self.block_bytes - 1

    def starts(self, available: int) -> bool:
        """vLLM refuses to start where one prompt of full length would not fit."""
        return self.blocks(available) >= -(-self.longest // BLOCK)


@dataclass(frozen=True)
class Row:
    """One line of the table: source tokens that fit."""

    plain: int
    ours: int
    longest: int
    """Longest prompt that can be compressed."""

    @property
    def factor(self) -> float:
        return self.ours / self.plain


def row(shape: DecoderShape, available: int, longest: int, prompt: int = 2048) -> Row | None:
    """Plain vLLM and the plug-in with prompts of one length; None where plain does not start."""
    config, kv = QuickMergeConfig(ratio=RATIO), Kv(shape, longest)
    if not kv.starts(available):
        return None
    kept = memory_to_keep(config, shape, available, max_model_len=longest, block_size=BLOCK)
    assert kv.starts(available - kept), "where plain vLLM starts, this starts too"
    blocks = kv.blocks(available - kept)
    k = round_to_blocks(round(RATIO * prompt), prompt, 36, BLOCK)
    own, job = -(-(k + 1) // BLOCK), -(-prompt // BLOCK)
    # The last prompt's job needs the blocks of its whole prompt beside the others' results.
    ours = (blocks - job) // own + 1 if blocks >= job else 0
    fits = min(longest_job(config, shape, kept, longest), blocks * BLOCK)
    return Row(kv.blocks(available) * BLOCK // prompt * prompt, ours * prompt, fits)


def available(model: Model, card: float) -> int:
    return int(card * UTILISATION - ACTIVATIONS - model.weights)


@pytest.mark.parametrize("longest", LENGTHS)
@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize("name", MODELS)
def test_source_tokens_that_fit(name, card, longest):
    """2.5 times as many would be the limit at this ratio."""
    chosen = MODELS[name]
    found = row(chosen.shape, available(chosen, CARDS[card]), longest)
    if found is None:
        assert available(chosen, CARDS[card]) < longest * chosen.shape.token_bytes
        return
    assert found.factor >= 2.2, found
    assert found.longest == longest, "a prompt of full length can be compressed"


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("spare", [0, 1, 2, 10, 100, 1000])
def test_a_card_on_which_plain_just_starts_starts_with_us(name, spare):
    shape = MODELS[name].shape
    kv = Kv(shape, 32_768)
    just = (32_768 // BLOCK + 1 + spare) * kv.block_bytes
    assert kv.starts(just)
    assert not kv.starts(just - (spare + 1) * kv.block_bytes)
    assert row(shape, just, 32_768) is not None


def test_a_length_that_vllm_fits_by_itself_leaves_a_share():
    """With max_model_len="auto" the length is not known yet, and would not fit."""
    shape = MODELS["Llama-3.1-8B"].shape
    kept = memory_to_keep(
        QuickMergeConfig(), shape, 4 * GIB, max_model_len=131_072, block_size=BLOCK
    )
    assert kept == int(0.1 * 4 * GIB)


def table() -> str:
    """The table as it stands in docs/serving.md."""
    lines = [
        "| model | card | max_model_len | plain | compressed, 0.4 | factor | longest compressed |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, chosen in MODELS.items():
        for card, size in CARDS.items():
            for longest in LENGTHS:
                found = row(chosen.shape, available(chosen, size), longest)
                cells = (
                    ("does not start", "", "", "") if found is None
                    else (f"{found.plain:,}", f"{found.ours:,}", f"{found.factor:.2f}",
                          f"{found.longest:,}")
                )
                lines.append(f"| {name} | {card} | {longest:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def test_the_page_holds_this_table():
    text = PAGE.read_text(encoding="utf-8")
    inside = text.split(FIRST)[1].split(LAST)[0]
    assert inside.strip() == table(), "python tests/unit/test_memory.py prints it"


if __name__ == "__main__":
    print(table())
