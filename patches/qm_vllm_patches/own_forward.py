"""The served model's own forward over a few tokens, outside vLLM's batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional as F

from qm_vllm_patches.log import get_logger

logger = get_logger(__name__)

TOKENS = 64
"""Of a comparison: as many as a chunk's end and a few blocks need."""

Forward = Callable[..., Any]


@contextmanager
def answering(modules: Sequence[Any], make: Callable[[Any, Forward], Forward]) -> Iterator[None]:
    """Attention layers of vLLM answer otherwise for the moment; restored on any exit.

    Args:
        make: ``make(layer, own)`` is what the layer's backend answers with instead of ``own``.
    """
    before = [vars(module.impl).get("forward") for module in modules]
    for module in modules:
        module.impl.forward = make(module, module.impl.forward)
    try:
        yield
    finally:
        for module, own in zip(modules, before, strict=True):
            if own is None:
                del module.impl.forward
            else:
                module.impl.forward = own


@contextmanager
def forward_context(
    runner: Any, count: int, metadata: Any = None, slots: dict[str, torch.Tensor] | None = None
) -> Iterator[None]:
    """What layers of vLLM look around in while they run, as for a batch of ``count`` rows.

    Args:
        runner: what vLLM runs the model with.
        metadata: of its attention. slots: of each layer's rows, by vLLM's name of the layer.
    """
    from vllm.config import set_current_vllm_config
    from vllm.forward_context import get_forward_context, set_forward_context

    config = runner.vllm_config
    with (
        torch.inference_mode(), set_current_vllm_config(config),
        set_forward_context(
            metadata, config, num_tokens=count, slot_mapping=slots or {}, skip_compiled=True
        ),
    ):
        get_forward_context().all_moe_layers = None  # each says its own name: some may run alone
        yield


def run_model(
    model: Any, runner: Any, ids: torch.Tensor, positions: torch.Tensor, metadata: Any = None,
    slots: dict[str, torch.Tensor] | None = None,
) -> None:
    """Run the whole model once, eagerly.

    Args:
        ids: int32 [T]. positions: int64 [T]. metadata, slots: as of :func:`forward_context`.
    """
    config, count = runner.vllm_config, ids.shape[0]
    if config.model_config.uses_mrope:
        positions = positions.expand(config.model_config.mrope_num_dims, -1).contiguous()
    if config.lora_config is not None:  # its layers ask whose adapter each row has: nobody's
        runner._set_active_loras((0,) * count, (0,) * count, set())
    with forward_context(runner, count, metadata, slots):
        model(input_ids=ids, positions=positions, intermediate_tensors=None, inputs_embeds=None)


def reading_limits(runner: Any) -> tuple[int, int]:
    """The size of the model's vocabulary, and how many tokens vLLM ever gives to it at once."""
    config = runner.vllm_config
    vocabulary = int(config.model_config.get_vocab_size())
    return vocabulary, int(config.scheduler_config.max_num_batched_tokens)


class OwnRows:
    """Keys and values that the model hands to its cache, of the first tokens of an idle engine.

    The attention is vLLM's own. It writes into blocks of the cache, which nobody uses yet.

    Args:
        model: the loaded module. runner: what vLLM runs it with.
        modules: its attention layers.
        device: of the model.
        blocks: that the cache has.

    Attributes:
        ids: the tokens, spread over the vocabulary.
        found: keys and values [T, KVH, D] of each layer, by vLLM's name of it.
    """

    def __init__(
        self, model: Any, runner: Any, modules: Sequence[Any], device: torch.device, blocks: int
    ) -> None:
        self.model, self.runner, self.modules, self.device = model, runner, modules, device
        self.blocks = blocks
        vocabulary, _ = reading_limits(runner)
        self.ids = [1 + i * (vocabulary - 2) // TOKENS for i in range(TOKENS)]
        self.found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self.metadata: dict[str, Any] | None = None
        self.slots: dict[str, torch.Tensor] = {}

    def _prepare(self) -> None:
        """Ask vLLM's attention backends for this batch."""
        metadata: dict[str, Any] = {}
        first = 1  # the first block is vLLM's placeholder
        for groups in self.runner.attn_groups:  # which share the pool
            used = 0
            for group in groups:
                made, slots, used = self._of_group(group, first)
                metadata |= dict.fromkeys(group.layer_names, made)
                self.slots |= dict.fromkeys(group.layer_names, slots)
            first += used
        self.metadata = metadata

    def _of_group(self, group: Any, first: int) -> tuple[Any, torch.Tensor, int]:
        """Metadata of one request, the slots of its rows, and how many blocks it takes."""
        from vllm.v1.attention.backend import CommonAttentionMetadata

        count, size = TOKENS, int(group.kv_cache_spec.block_size)
        used = -(-count // size)
        if first + used > self.blocks:
            raise ValueError("the KV cache has fewer blocks than the check needs")
        blocks = torch.arange(first, first + used, dtype=torch.int32, device=self.device)
        rows = torch.arange(count, device=self.device)
        bounds = torch.tensor([0, count], dtype=torch.int32)
        lengths = torch.tensor([count], dtype=torch.int32)
        slots = rows + first * size
        common = CommonAttentionMetadata(
            query_start_loc=bounds.to(self.device), query_start_loc_cpu=bounds,
            seq_lens=lengths.to(self.device), seq_lens_cpu_upper_bound=lengths,
            num_reqs=1, num_actual_tokens=count, max_query_len=count, max_seq_len=count,
            block_table_tensor=blocks[None], slot_mapping=slots, causal=True, positions=rows,
            is_prefilling=torch.ones(1, dtype=torch.bool),
        )
        return group.build_metadata(common), slots, used

    def run(self) -> None:
        """Fill :attr:`found`; all ranks of a tensor-parallel group run at the same time.

        A backend that wants to be asked in another way is left out, and torch's attention answers:
        it has neither sinks nor soft caps, which a dense pass has not either.
        """
        try:
            self._prepare()
        except Exception as error:
            logger.info("qm_vllm: torch's attention checks the model, because %r", error)
            self.metadata, self.slots = None, {}
        ids = torch.tensor(self.ids, dtype=torch.int32, device=self.device)
        places = torch.arange(TOKENS, device=self.device)
        with answering(self.modules, self._recorded):
            run_model(self.model, self.runner, ids, places, self.metadata, self.slots)

    def _recorded(self, module: Any, own: Forward) -> Forward:
        count, heads, size = TOKENS, module.num_kv_heads, module.head_size

        def forward(layer: Any, query: Any, key: Any, value: Any, *rest: Any, **named: Any) -> Any:
            pair = (part[:count].detach().reshape(count, heads, size) for part in (key, value))
            keys, values = (part.float().cpu() for part in pair)
            self.found[module.layer_name] = keys, values
            if self.metadata is not None:
                return own(layer, query, key, value, *rest, **named)
            out: torch.Tensor = named["output"]
            out.copy_(attend(module, query, key, value).reshape(out.shape))
            return out

        return forward


def attend(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, soft_cap: float = 0.0
) -> torch.Tensor:
    """Causal attention of rows [T, heads, D] within the layer's window, without its cache.

    Args:
        module: vLLM's attention layer. soft_cap: c of ``c tanh(logits / c)``; 0: none.
    """
    def heads(part: torch.Tensor, count: int) -> torch.Tensor:
        return part.reshape(part.shape[0], count, module.head_size).transpose(0, 1)[None]

    rows = query.shape[0]
    seen = torch.ones(rows, rows, dtype=torch.bool, device=query.device).tril()
    if module.sliding_window is not None:
        seen = seen.triu(1 - module.sliding_window)
    queries, keys = heads(query, module.num_heads), heads(key, module.num_kv_heads)
    values, scale = heads(value, module.num_kv_heads), float(module.impl.scale)
    if soft_cap:
        each = module.num_heads // module.num_kv_heads
        keys, values = (part.repeat_interleave(each, 1) for part in (keys, values))
        logits = queries.float() @ keys.float().transpose(-1, -2) * scale
        logits = torch.tanh(logits / soft_cap) * soft_cap
        out = (logits.masked_fill(~seen, float("-inf")).softmax(-1) @ values.float()).to(query)
    else:
        out = F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=seen, scale=scale, enable_gqa=True
        )
    return out[0].transpose(0, 1)
