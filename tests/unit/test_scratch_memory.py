"""The estimate of device memory for jobs."""

from __future__ import annotations

from qm_vllm import QuickMergeConfig
from qm_vllm.engine.scratch_memory import DecoderShape, scratch_bytes

SHAPE = DecoderShape(
    hidden_size=576, num_layers=30, num_kv_heads=3, head_size=64, bytes_per_value=2
)


def test_terms_by_hand():
    config = QuickMergeConfig(ratio=0.5, max_live_jobs=2)
    pair = 2 * 3 * 64 * 2
    states = 1000 * 576 * (3 * 2 + 4)
    read = 1000 * 6 * pair // 2  # a fifth of 30 layers, keys only
    assert scratch_bytes(config, SHAPE, 1000) == (
        states + 1000 * 21 * pair + read + 2 * 500 * 30 * pair
    )
    prefill = QuickMergeConfig(ratio=0.5, delivery="prefill", window_layers=2)
    assert scratch_bytes(prefill, SHAPE, 1000) == states + 1000 * 22 * pair


def test_the_estimate_grows_with_what_can_be_kept():
    sizes = [
        scratch_bytes(config, SHAPE, 4000)
        for config in (
            QuickMergeConfig(max_kept=500), QuickMergeConfig(), QuickMergeConfig(alpha=0.4),
            QuickMergeConfig(max_error=0.3),
        )
    ]
    assert sizes == sorted(sizes)
