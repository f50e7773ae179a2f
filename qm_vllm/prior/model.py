"""The prior as a transformers model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaModel,
    PreTrainedModel,
)
from transformers.utils import ModelOutput

from qm_vllm.prior.config import PriorConfig


@dataclass
class PriorOutput(ModelOutput):
    """What the forward decoder says at each position.

    Attributes:
        hidden: [B, T, H] after the last norm.
        logits: [B, T, V] over the one output vocabulary.
    """

    hidden: Tensor | None = None
    logits: Tensor | None = None


class CausalStack(nn.Module):
    """One direction: Llama blocks between a map from the states' width and one back to it."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.input_proj = nn.Linear(config.input_size, config.hidden_size, bias=False)
        self.model = _blocks(config)
        self.state_head = nn.Linear(config.hidden_size, config.input_size, bias=False)

    def forward(self, embedded: Tensor) -> Tensor:
        """[B, T, H] embedded positions to [B, T, H]; position t sees positions <= t."""
        hidden: Tensor = self.model(inputs_embeds=embedded, use_cache=False).last_hidden_state
        return hidden


class QuickMergePriorForCausalLM(PreTrainedModel):
    """f-> and f<- of paper 3.4, with heads for tokens, classes and time bins.

    States are standardised on the way in with the mean and deviation of the training data,
    which are part of the checkpoint. Sequences of a batch are padded on the right: causal
    attention keeps padding out of every earlier position, so no mask is needed.
    """

    config_class = PriorConfig
    base_model_prefix = "prior"
    _no_split_modules = ("LlamaDecoderLayer",)
    _supports_sdpa = True
    _supports_flash_attn = True
    config: PriorConfig

    def __init__(self, config: PriorConfig) -> None:
        super().__init__(config)
        self.forward_stack = CausalStack(config)
        self.backward_stack = CausalStack(config) if config.backward_twin else None
        if self.backward_stack is not None:
            self.backward_stack.model.embed_tokens = nn.Identity()  # it reads states alone
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.register_buffer("state_mean", torch.zeros(config.input_size))
        self.register_buffer("state_std", torch.ones(config.input_size))
        self.post_init()
        with torch.no_grad():
            for stack in (self.forward_stack, self.backward_stack):
                if stack is not None:
                    stack.state_head.weight.zero_()  # training begins at the mean state

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            nn.init.zeros_(self.state_mean)
            nn.init.ones_(self.state_std)

    def get_input_embeddings(self) -> nn.Module:
        """The table of the output ids: [V, H]."""
        return self.forward_stack.model.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def standardised(self, states: Tensor) -> Tensor:
        """(states - mean) / deviation, per dimension: [..., D]."""
        return (states - self.state_mean) / self.state_std

    def raw(self, states: Tensor) -> Tensor:
        """Undo :meth:`standardised`."""
        return states * self.state_std + self.state_mean

    def embed_states(self, states: Tensor) -> Tensor:
        """Merged states [..., D] as the forward decoder's inputs [..., H]."""
        embedded: Tensor = self.forward_stack.input_proj(self.standardised(states))
        return embedded

    def forward(
        self,
        states: Tensor | None = None,
        *,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **_: Any,
    ) -> PriorOutput:
        """Run the forward decoder over merged states and then, perhaps, output ids.

        Args:
            states: [B, K, D] merged states.
            input_ids: int64 [B, M] output ids that follow the states.
            inputs_embeds: [B, T, H] in place of both, as :meth:`embed_states` and
                :meth:`get_input_embeddings` make them.

        Returns:
            T = K + M positions.

        Raises:
            ValueError: nothing to read, or a shape that the prior was not made for.
        """
        if inputs_embeds is None:
            parts = []
            if states is not None:
                self.check(states)
                parts.append(self.embed_states(states))
            if input_ids is not None:
                parts.append(self.get_input_embeddings()(input_ids))
            if not parts:
                raise ValueError("the prior reads states [B, K, D]; none were given")
            inputs_embeds = torch.cat(parts, 1)
        hidden = self.forward_stack(inputs_embeds)
        return PriorOutput(hidden=hidden, logits=self.lm_head(hidden))

    def next_states(self, hidden: Tensor) -> Tensor:
        """The state that the forward decoder expects after each position: [B, T, D]."""
        return self.raw(self.forward_stack.state_head(hidden))

    def check(self, states: Tensor) -> None:
        """Raise ValueError, with names and shapes, unless states are a usable [B, T, D]."""
        width = self.config.input_size
        if states.ndim != 3 or states.shape[2] != width:
            raise ValueError(
                f"states must be [B, T, {width}] (input_size of this prior, trained on "
                f"{self.config.encoder or 'an unnamed encoder'}), not {list(states.shape)}"
            )
        if states.shape[0] < 1 or states.shape[1] < 1:
            raise ValueError(f"states {list(states.shape)} hold no position; give at least one")
        limit = self.config.max_position_embeddings
        if states.shape[1] > limit:
            raise ValueError(
                f"states {list(states.shape)} have more positions than the prior's "
                f"max_position_embeddings={limit}; keep fewer"
            )


def _blocks(config: PriorConfig) -> LlamaModel:
    """Llama's blocks, with norms that keep the type of their input."""
    fields = {
        name: getattr(config, name)
        for name in (
            "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "hidden_act", "max_position_embeddings", "initializer_range",
            "rms_norm_eps", "rope_parameters", "attention_bias", "attention_dropout", "mlp_bias",
        )
    }
    plain = LlamaConfig(
        **fields, vocab_size=config.vocab_size, bos_token_id=None, eos_token_id=None
    )
    plain._attn_implementation = config._attn_implementation
    blocks = LlamaModel(plain)
    # Llama's own norm rounds float64 to float32, which would spoil finite differences.
    for layer in blocks.layers:
        layer.input_layernorm = _norm(config)
        layer.post_attention_layernorm = _norm(config)
    blocks.norm = _norm(config)
    return blocks


def _norm(config: PriorConfig) -> nn.RMSNorm:
    return nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)


AutoModel.register(PriorConfig, QuickMergePriorForCausalLM, exist_ok=True)
AutoModelForCausalLM.register(PriorConfig, QuickMergePriorForCausalLM, exist_ok=True)
