"""Shape of a prior, in the form of transformers' configurations."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, LlamaConfig


class PriorConfig(LlamaConfig):
    """Configuration of :class:`~qm_vllm.prior.model.QuickMergePriorForCausalLM`.

    The blocks are Llama's (RoPE, RMSNorm, SwiGLU), so every Llama field is valid; the defaults
    are the paper's 6 layers of width 512 (4.1) with 8 heads.

    One output vocabulary holds all heads, in this order: ``num_tokens`` tokens, ``num_classes``
    classes, ``num_time_bins`` time bins. Any may be 0. See :meth:`ids`. What is generated follows
    the last state directly.

    Args:
        input_size: D, width of the merged states, time features included.
        time_features: how many of these, the last ones, say when a state was
            (:func:`qm_vllm.prior.side_inputs.time_features`).
        num_tokens: size of the token head's vocabulary.
        num_classes: labels of the class head.
        num_time_bins: equal parts of a sequence that the time-bin head points at.
        backward_twin: keep the backward decoder (3.4); only training needs it.
        encoder: name of the frozen encoder that the states come from; information only.

    Raises:
        ValueError: a size is impossible; the message names it.
    """

    model_type = "quickmerge_prior"

    input_size: int = 384
    time_features: int = 0
    num_tokens: int = 0
    num_classes: int = 0
    num_time_bins: int = 0
    backward_twin: bool = True
    encoder: str | None = None

    hidden_size: int = 512
    intermediate_size: int = 1408
    num_hidden_layers: int = 6
    num_attention_heads: int = 8
    max_position_embeddings: int = 8192
    vocab_size: int = 1
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        for name in ("input_size", "hidden_size", "num_hidden_layers", "num_attention_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("num_tokens", "num_classes", "num_time_bins", "time_features"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0")
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                f"hidden_size={self.hidden_size} must be a multiple of twice "
                f"num_attention_heads={self.num_attention_heads} (RoPE turns pairs)"
            )
        if self.time_features % 2 or self.time_features >= self.input_size:
            raise ValueError(
                f"time_features={self.time_features} must be even and less than "
                f"input_size={self.input_size}, which includes them"
            )
        self.vocab_size = max(1, self.num_tokens + self.num_classes + self.num_time_bins)
        named: list[str] | None = getattr(self, "architectures", None)
        self.architectures = named or ["QuickMergePriorForCausalLM"]
        super().__post_init__(**kwargs)

    def ids(self, head: str) -> range:
        """Output ids of one head.

        Args:
            head: "tokens", "classes" or "time_bins".

        Raises:
            ValueError: the prior has no such head.
        """
        sizes = {
            "tokens": self.num_tokens, "classes": self.num_classes,
            "time_bins": self.num_time_bins,
        }
        first = 0
        for name, size in sizes.items():
            if name == head and size:
                return range(first, first + size)
            first += size
        there = ", ".join(name for name, size in sizes.items() if size) or "none"
        raise ValueError(f"the prior has no head {head!r}; it has {there}")


AutoConfig.register(PriorConfig.model_type, PriorConfig, exist_ok=True)
