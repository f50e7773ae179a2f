"""What an ASGI scope holds of a server, as far as the middleware looks at it."""

from __future__ import annotations

from types import SimpleNamespace

from qm_vllm.api import engine_args
from qm_vllm.config import QuickMergeConfig

MODEL = SimpleNamespace(
    architectures=["LlamaForCausalLM"], num_hidden_layers=12, hidden_size=64,
    num_attention_heads=4, num_key_value_heads=2, vocab_size=512,
)


def engine_settings(config: QuickMergeConfig | None, *others: dict) -> SimpleNamespace:
    """vLLM's settings of an engine; None: one without a connector. Others: beside ours."""
    transfer = engine_args(config, others)["kv_transfer_config"]
    return SimpleNamespace(
        kv_transfer_config=SimpleNamespace(**transfer) if config else None,
        model_config=SimpleNamespace(hf_text_config=MODEL, max_model_len=4096),
    )


def application(config: QuickMergeConfig | None) -> SimpleNamespace:
    """The application of a server in front of such an engine."""
    return SimpleNamespace(state=SimpleNamespace(vllm_config=engine_settings(config)))
