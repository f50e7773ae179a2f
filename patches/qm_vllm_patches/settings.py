"""The settings of a starting engine, read from vLLM's configuration into plain values."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from qm_vllm_patches.log import get_logger

if TYPE_CHECKING:
    from vllm.config import KVTransferConfig, ModelConfig, VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

logger = get_logger(__name__)


@dataclass(frozen=True)
class EngineSettings:
    """What is decided before a model runs.

    Attributes:
        options: the connector's own part of the configuration.
        text_config: transformers' configuration of the decoder.
        hidden_size, num_layers, num_heads, num_kv_heads, head_size: one rank's part of it.
        dtype, value_bytes: of a state.
        cache_bytes: of a number in the KV cache. quantised: the cache holds other numbers than
            the model computes with.
        identity: what decides the KV of a prompt: model, revision, types.
        has_lora, speculative, is_moe, uses_mla, expert_parallel, prefix_caching: as configured.
        in_flight_tokens: at most, of the steps that run at once.
        full_graphs: prompts, too, run inside CUDA graphs, where nobody can look on.
        device: torch's name of its kind.
        company: names of the connectors in vLLM's ``MultiConnector``, in order; none without it.
        tensor_parallel: ranks that hold a part of each layer.
        scheduler: ``scheduler_cls`` as it was given; None where vLLM chooses.
        hybrid_manager: KV-cache groups of layers may have block tables of their own.
    """

    options: dict[str, Any]
    architecture: str
    text_config: Any
    runner: str
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    dtype: Any
    value_bytes: int
    cache_bytes: int
    quantised: bool
    block_size: int
    max_model_len: int
    identity: tuple[Any, ...]
    pipeline_parallel: int
    context_parallel: int
    data_parallel: int
    expert_parallel: bool
    is_moe: bool
    uses_mla: bool
    has_lora: bool
    speculative: bool
    prefix_caching: bool
    in_flight_tokens: int = 2048
    full_graphs: bool = False
    device: str = "cpu"
    company: tuple[str, ...] = ()
    scheduler: Any = None
    tensor_parallel: int = 1
    hybrid_manager: bool = True
    model: Any = field(repr=False, compare=False, default=None)


@dataclass(frozen=True)
class CacheFacts:
    """The paged KV cache as it was laid out.

    Attributes:
        groups: of layers with block tables of their own.
        block_bytes: of one block over all layers that have it, on this rank.
        kinds: vLLM's names for what the groups keep, and how.
        block_sizes: tokens of a block, of each group.
        windows: of each group whose older blocks are let go, its sliding window, else None.
        layers: the group of each attention layer, by vLLM's name of the layer.
        keep_less: of each group, whether its layers keep less than others (:mod:`.layer_groups`).
    """

    groups: int
    block_bytes: int
    kinds: tuple[str, ...] = ()
    block_sizes: tuple[int, ...] = ()
    windows: tuple[int | None, ...] = ()
    layers: dict[str, int] = field(default_factory=dict)
    keep_less: tuple[bool, ...] = ()


def read_settings(config: VllmConfig) -> EngineSettings:
    """Read an engine's configuration."""
    model, parallel, cache = config.model_config, config.parallel_config, config.cache_config
    transfer = config.kv_transfer_config
    own = model.dtype
    stored = _cache_dtype(cache.cache_dtype, own)
    return EngineSettings(
        options=connector_options(transfer),
        architecture=model.architecture,
        text_config=model.hf_text_config,
        runner=model.runner_type,
        hidden_size=model.get_hidden_size(),
        num_layers=model.get_num_layers(parallel),
        num_heads=model.get_num_attention_heads(parallel),
        num_kv_heads=model.get_num_kv_heads(parallel),
        head_size=model.get_head_size(),
        dtype=own,
        value_bytes=own.itemsize,
        cache_bytes=stored.itemsize,
        quantised=stored != own,
        block_size=cache.block_size,
        max_model_len=model.max_model_len,
        identity=(model.model, model.revision, str(own), cache.cache_dtype, model.quantization),
        pipeline_parallel=parallel.pipeline_parallel_size,
        context_parallel=max(
            parallel.decode_context_parallel_size, parallel.prefill_context_parallel_size
        ),
        data_parallel=parallel.data_parallel_size,
        tensor_parallel=parallel.tensor_parallel_size,
        expert_parallel=parallel.enable_expert_parallel,
        is_moe=model.is_moe,
        uses_mla=model.use_mla,
        has_lora=config.lora_config is not None,
        speculative=config.speculative_config is not None,
        prefix_caching=bool(cache.enable_prefix_caching),
        in_flight_tokens=config.max_in_flight_tokens,
        full_graphs=getattr(config.compilation_config.cudagraph_mode, "name", "") == "FULL",
        device=str(config.device_config.device_type),
        company=tuple(str(one.get("kv_connector")) for one in _members(transfer)),
        scheduler=config.scheduler_config.scheduler_cls,
        hybrid_manager=not config.scheduler_config.disable_hybrid_kv_cache_manager,
        model=model,
    )


def connector_options(transfer: KVTransferConfig | None) -> dict[str, Any]:
    """Extra configuration of the engine's connector, or of all in vLLM's ``MultiConnector``."""
    if transfer is None:
        return {}
    found = dict(transfer.kv_connector_extra_config)
    for one in _members(transfer):
        found |= one.get("kv_connector_extra_config") or {}
    return found


def _members(transfer: KVTransferConfig | None) -> list[dict[str, Any]]:
    """Configurations of the connectors in vLLM's ``MultiConnector``; none without it."""
    if transfer is None or transfer.kv_connector != "MultiConnector":
        return []
    return list(transfer.kv_connector_extra_config.get("connectors") or [])


def has_processors(config: VllmConfig) -> bool:
    """Whether the engine has processors of logits that are not vLLM's own."""
    installed = entry_points(group="vllm.logits_processors")
    return bool(config.model_config.logits_processors or installed)


def read_cache(config: KVCacheConfig) -> CacheFacts:
    """Read how the KV cache was laid out."""
    from vllm.v1.kv_cache_interface import SlidingWindowSpec

    groups = config.kv_cache_groups
    # Layers of one kind but of several sizes share a group under one more specification.
    inner = [getattr(group.kv_cache_spec, "kv_cache_specs", None) for group in groups]
    kinds = {
        type(spec).__name__
        for group, several in zip(groups, inner, strict=True)
        for spec in (several.values() if several else [group.kv_cache_spec])
    }
    return CacheFacts(
        groups=len(groups),
        # Groups share the pool: a block has room for the layers of the largest.
        block_bytes=max((
            group.kv_cache_spec.page_size_bytes * (1 if several else len(group.layer_names))
            for group, several in zip(groups, inner, strict=True)
        ), default=0),
        kinds=tuple(sorted(kinds)),
        block_sizes=tuple(group.kv_cache_spec.block_size for group in groups),
        windows=tuple(
            group.kv_cache_spec.sliding_window
            if isinstance(group.kv_cache_spec, SlidingWindowSpec) else None
            for group in groups
        ),
        keep_less=tuple(
            bool(getattr(group.kv_cache_spec, "keeps_less", False)) for group in groups
        ),
        layers={
            name: index for index, group in enumerate(groups) for name in group.layer_names
        },
    )


def trained_length(text_config: Any, max_model_len: int) -> int:
    """Positions that a model knows: those it was trained for, or what vLLM lets it read."""
    return max(max_model_len, getattr(text_config, "max_position_embeddings", None) or 0)


def tokenizer_of(settings: EngineSettings) -> Any:
    """The served model's tokenizer, or None where there is none."""
    model: ModelConfig = settings.model
    if model.skip_tokenizer_init:
        return None
    try:
        from vllm.tokenizers import cached_tokenizer_from_config

        return cached_tokenizer_from_config(model)
    except Exception as error:
        logger.warning("qm_vllm: no tokenizer here (%s); using bos and eos only", error)
        return None


def _cache_dtype(name: str, own: Any) -> Any:
    """torch's type of the numbers in the cache."""
    from vllm.utils.torch_utils import STR_DTYPE_TO_TORCH_DTYPE

    return own if name == "auto" else STR_DTYPE_TO_TORCH_DTYPE.get(name, own)
