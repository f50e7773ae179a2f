"""Every name of vLLM that this project uses, with the file of this package that uses it.

A test walks the syntax trees: a name that is imported, or an attribute that is read from one of
the classes below, and is not listed here fails it, and so does a listed one that nobody uses.
:mod:`.checks` looks up what an engine needs when it starts: imports, the attributes of the classes
among them, hooks and calls. What models and layers are made of is looked at when one is loaded.

A vLLM that names something otherwise is served by a branch in the file that uses it; what differs
between versions is nobody else's business.
"""

from __future__ import annotations

MIN_VERSION, BELOW_VERSION = (0, 32), (0, 33)

CONNECTOR = "vllm.distributed.kv_transfer.kv_connector.v1.base"
METRICS = "vllm.distributed.kv_transfer.kv_connector.v1.metrics"

IMPORTS: dict[str, tuple[tuple[str, ...], str]] = {
    CONNECTOR: (
        ("KVConnectorBase_V1", "KVConnectorHandshakeMetadata", "KVConnectorMetadata",
         "KVConnectorRole", "KVConnectorWorkerMetadata", "SupportsHMA"),
        "connector.py, messages.py",
    ),
    METRICS: (("KVConnectorPromMetrics", "KVConnectorStats"), "metrics.py, connector.py"),
    "vllm.config": (
        ("ModelConfig", "VllmConfig", "set_current_vllm_config"),
        "settings.py, connector.py, attention_layers.py",
    ),
    "vllm.forward_context": (
        ("ForwardContext", "set_forward_context"), "connector.py, attention_layers.py",
    ),
    "vllm.model_executor.layers.attention": (("Attention",), "attention_layers.py"),
    "vllm.sampling_params": (("SamplingParams",), "requests.py, first_token.py"),
    "vllm.v1.request": (
        ("Request", "RequestStatus"),
        "requests.py, connector.py, scheduler.py, first_token.py, true_figures.py",
    ),
    "vllm.v1.core.block_pool": (("BlockPool",), "block_pool.py, connector.py"),
    "vllm.v1.core.kv_cache_utils": (("KVCacheBlock",), "block_pool.py"),
    "vllm.v1.core.kv_cache_coordinator": (("KVCacheCoordinator",), "scheduler.py"),
    "vllm.v1.core.kv_cache_manager": (
        ("KVCacheBlocks", "KVCacheManager"), "connector.py, scheduler.py, true_figures.py",
    ),
    "vllm.v1.core.sched.async_scheduler": (("AsyncScheduler",), "scheduler.py"),
    "vllm.v1.core.sched.output": (
        ("KVConnectorBlockState", "SchedulerOutput"), "connector.py, scheduler.py",
    ),
    "vllm.v1.core.sched.scheduler": (("Scheduler",), "scheduler.py"),
    "vllm.v1.engine": (
        ("EngineCoreOutput", "EngineCoreOutputs"), "scheduler.py, true_figures.py",
    ),
    "vllm.v1.engine.output_processor": (("OutputProcessor",), "frontend.py"),
    "vllm.v1.metrics.stats": (("PrefillStats", "SchedulerStats"), "scheduler.py"),
    "vllm.v1.kv_cache_interface": (
        ("KVCacheConfig", "SlidingWindowSpec"), "settings.py, connector.py",
    ),
    "vllm.v1.outputs": (("KVConnectorOutput",), "connector.py"),
    "vllm.distributed": (
        ("get_tensor_model_parallel_world_size", "get_tp_group", "model_parallel_is_initialized",
         "tensor_model_parallel_all_gather"),
        "ranks.py",
    ),
    "vllm.distributed.kv_transfer": (
        ("get_kv_transfer_group", "has_kv_transfer_group"), "worker.py",
    ),
    "vllm.platforms": (("current_platform",), "worker.py"),
    "vllm.tokenizers": (("cached_tokenizer_from_config",), "settings.py"),
    "vllm.utils.torch_utils": (("STR_DTYPE_TO_TORCH_DTYPE",), "settings.py"),
    "vllm.v1.worker.cpu_worker": (("CPUWorker",), "worker.py"),
    "vllm.v1.worker.gpu_worker": (("Worker",), "worker.py"),
}
"""Module to the names taken from it and the files that take them. Without one of these no engine
starts with the plug-in (of the workers, the platform's own is needed)."""

OPTIONAL: dict[str, tuple[tuple[str, ...], str]] = {
    "vllm._custom_ops": (
        ("cpu_attn_reshape_and_cache", "cpu_attn_get_scheduler_metadata",
         "cpu_attention_with_kv_cache"),
        "kernels.py",
    ),
    "vllm.v1.attention.backends.cpu_attn": (("_get_attn_isa",), "kernels.py"),
    "vllm.v1.attention.backends.fa_utils": (("get_flash_attn_version",), "kernels.py"),
    "vllm.vllm_flash_attn": (("flash_attn_varlen_func",), "kernels.py"),
    "vllm.v1.worker.xpu_worker": (("XPUWorker",), "worker.py"),
}
"""Fast paths and other platforms: without one, torch's own way is taken."""

ELSEWHERE: dict[str, tuple[tuple[str, ...], str]] = {
    "vllm": (("LLM", "ModelRegistry", "SamplingParams", "__version__"), "llm.py, models.py"),
    "vllm.benchmarks.serve": (("add_cli_args", "main"), "bench.py"),
    "vllm.engine.arg_utils": (("EngineArgs",), "llm.py"),
    "vllm.entrypoints.cli.serve": (("ServeSubcommand",), "llm.py"),
    "vllm.logger": (("configure_logging_from_args",), "llm.py"),
    "vllm.utils.argparse_utils": (("FlexibleArgumentParser",), "bench.py, llm.py"),
    "vllm.model_executor.layers.activation": (("SiluAndMul",), "fused_ops.py"),
    "vllm.model_executor.layers.layernorm": (("RMSNorm",), "fused_ops.py"),
    "vllm.model_executor.models.llama": (("LlamaForCausalLM",), "served_prior.py"),
    "vllm.model_executor.models.utils": (("WeightsMapper",), "served_prior.py"),
}
"""Used by commands, by the prior, or when a model is looked into, which fails with a sentence."""

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "Request": (
        "_all_token_ids", "_block_hasher", "_prompt_embeds_per_block_hashes", "arrival_time",
        "block_hashes", "cache_salt", "client_index", "get_finished_reason", "lora_request",
        "max_tokens", "mm_features", "num_computed_tokens", "num_output_tokens",
        "num_preemptions", "num_prompt_tokens", "num_tokens", "priority", "prompt_embeds",
        "prompt_token_ids",
        "request_id", "resumable", "sampling_params", "skip_reading_prefix_cache", "status",
        "update_block_hashes",
    ),
    "RequestStatus": ("FINISHED_ABORTED", "FINISHED_ERROR", "RUNNING"),
    "LoRARequest": ("lora_name",),
    "Scheduler": (
        "_get_local_prefix_cache_hit", "add_request", "connector", "finish_requests",
        "get_request_counts", "kv_cache_manager", "make_stats", "schedule", "update_from_output",
    ),
    "KVCacheManager": (
        "coordinator", "create_kv_cache_blocks", "enable_caching", "get_block_ids",
        "prefix_cache_lookup_enabled", "prefix_cache_stats", "record_prefix_cache_stats",
    ),
    "PrefixCacheStats": ("record",),
    "PrefillStats": ("num_cache_creation_tokens", "set"),
    "SchedulerStats": ("connector_prefix_cache_stats",),
    "KVCacheCoordinator": ("find_longest_cache_hit",),
    "KVConnectorBlockState": ("resolve_block_ids",),
    "EngineCoreOutput": (
        "events", "finish_reason", "kv_transfer_params", "new_token_ids", "prefill_stats",
        "request_id",
    ),
    "OutputProcessor": ("add_request", "process_outputs", "request_states"),
    "RequestState": ("external_req_id",),
    "EngineCoreOutputs": ("outputs",),
    "SlidingWindowSpec": ("sliding_window",),
    "UniformTypeKVCacheSpecs": ("kv_cache_specs",),
    "SamplingParams": (
        "__struct_fields__", "allowed_token_ids", "clone", "eos_token_id", "extra_args",
        "logit_bias", "max_tokens", "min_tokens", "n", "prompt_logprobs",
        "skip_reading_prefix_cache", "stop_token_ids", "structured_outputs", "temperature",
    ),
    "BlockPool": (
        "cache_full_blocks", "enable_caching", "free_blocks", "get_new_blocks",
        "get_num_free_blocks", "num_gpu_blocks", "reset_prefix_cache",
    ),
    "KVCacheBlock": ("block_id",),
    "KVCacheBlocks": ("get_block_ids",),
    "SchedulerOutput": (
        "kv_connector_block_state", "num_scheduled_tokens", "total_num_scheduled_tokens",
    ),
    "KVConnectorOutput": ("kv_connector_worker_meta",),
    "KVConnectorRole": ("SCHEDULER",),
    "KVCacheConfig": ("kv_cache_groups",),
    "VllmConfig": (
        "cache_config", "compilation_config", "device_config", "kv_transfer_config", "lora_config",
        "model_config", "parallel_config", "scheduler_config", "speculative_config",
    ),
    "ModelConfig": (
        "architecture", "dtype", "get_head_size", "get_hidden_size", "get_num_attention_heads",
        "get_num_kv_heads", "get_num_layers", "hf_text_config", "is_moe", "logits_processors",
        "max_model_len", "model", "quantization", "revision", "runner_type",
        "skip_tokenizer_init", "use_mla", "uses_mrope",
    ),
    "SchedulerConfig": ("async_scheduling", "max_num_batched_tokens", "policy"),
    "CompilationConfig": ("cudagraph_mode",),
    "DeviceConfig": ("device_type",),
    "ParallelConfig": (
        "data_parallel_size", "decode_context_parallel_size", "enable_expert_parallel",
        "pipeline_parallel_size", "prefill_context_parallel_size",
    ),
    "CacheConfig": (
        "block_size", "cache_dtype", "enable_prefix_caching", "kv_cache_memory_bytes",
    ),
    "KVTransferConfig": ("kv_connector_extra_config",),
    "KVCacheGroupSpec": ("kv_cache_spec", "layer_names"),
    "KVCacheSpec": ("block_size", "page_size_bytes"),
    "Worker": (
        "determine_available_memory", "device", "initialize_from_config", "model_runner",
        "vllm_config",
    ),
    "ModelRunner": (
        "_bookkeeping_sync", "_sample", "_set_active_loras", "discard_request_mask", "get_model",
        "input_batch", "prepare_inputs", "vllm_config",
    ),
    "InputBatch": ("generators", "num_reqs", "req_ids"),
    "CpuGpuBuffer": ("np",),
    "Attention": (
        "head_size", "impl", "kv_sharing_target_layer_name", "layer_name", "num_heads",
        "num_kv_heads", "sliding_window",
    ),
    "AttentionImpl": (
        "alibi_slopes", "do_kv_cache_update", "forward", "logits_soft_cap", "scale", "sinks",
    ),
    "DecoderLayer": ("ada_rms_norm_t_cond", "forward", "self_attn"),
    "DecoderAttention": ("attn", "dual_chunk_attention_config", "rotary_emb"),
    "DecoderModel": ("embed_input_ids", "layers", "model"),
    "CustomOp": ("_forward_method", "forward_cpu", "forward_cuda", "forward_native", "op"),
    "RMSNorm": ("has_weight", "variance_epsilon", "variance_size_override", "weight"),
    "RotaryEmbedding": (
        "_compute_cos_sin_cache", "attention_scaling", "cos_sin_cache", "inv_freq",
        "is_neox_style", "rotary_dim",
    ),
    "Platform": ("device_type", "is_rocm"),
    "GroupCoordinator": ("cpu_group",),
    "KVConnectorBase_V1": ("_get_connector_metadata", "_vllm_config"),
    "KVConnectorPromMetrics": (
        "_counter_cls", "_gauge_cls", "_histogram_cls", "per_engine_labelvalues",
    ),
    "KVConnectorStats": ("data",),
    "ModelRegistry": ("register_model",),
    "FastAPI": ("vllm_config",),
    "LLM": ("llm_engine",),
    "LLMEngine": ("engine_core", "model_config"),
    "EngineCoreClient": ("shutdown",),
    "EngineArgs": ("add_cli_args",),
    "ServeSubcommand": ("cmd", "subparser_init", "validate"),
    "LlamaForCausalLM": ("config", "load_weights"),
    "WeightsMapper": ("apply",),
}
"""Class (or the part it plays, where models differ) to what is read from it or called on it."""

HOOKS: dict[str, int | None] = {
    "bind_gpu_block_pool": 1,
    "set_xfer_handshake_metadata": 1,
    "on_new_request": 1,
    "get_num_new_matched_tokens": 2,
    "update_state_after_alloc": 3,
    "build_connector_meta": 1,
    "update_connector_output": 1,
    "request_finished": 2,
    "request_finished_all_groups": 2,
    "register_kv_caches": 1,
    "get_handshake_metadata": 0,
    "bind_connector_metadata": 1,
    "start_load_kv": 1,
    "wait_for_layer_load": 1,
    "save_kv_layer": None,
    "wait_for_save": 0,
    "get_block_ids_with_load_errors": 0,
    "build_connector_worker_meta": 0,
    "reset_cache": 0,
    "get_kv_connector_stats": 0,
    "build_kv_connector_stats": 1,
    "build_prom_metrics": 4,
}
"""Methods of the connector that vLLM calls and this project overrides, with how many values it
passes (None: any). ``self`` and the class are not counted."""

CALLS: tuple[tuple[str, str, int, tuple[str, ...]], ...] = (
    ("vllm.v1.request", "Request.update_block_hashes", 1, ()),
    ("vllm.v1.core.block_pool", "BlockPool.get_new_blocks", 2, ()),
    ("vllm.v1.core.block_pool", "BlockPool.get_num_free_blocks", 1, ()),
    ("vllm.v1.core.block_pool", "BlockPool.free_blocks", 2, ()),
    ("vllm.v1.core.block_pool", "BlockPool.reset_prefix_cache", 1, ()),
    ("vllm.v1.core.block_pool", "BlockPool.cache_full_blocks", 1,
     ("request", "blocks", "num_cached_blocks", "num_full_blocks", "block_size",
      "kv_cache_group_id")),
    ("vllm.v1.core.kv_cache_manager", "KVCacheBlocks.get_block_ids", 1, ()),
    ("vllm.v1.core.kv_cache_manager", "KVCacheManager.create_kv_cache_blocks", 2, ()),
    ("vllm.v1.core.kv_cache_manager", "KVCacheManager.prefix_cache_lookup_enabled", 2, ()),
    ("vllm.v1.core.kv_cache_coordinator", "KVCacheCoordinator.find_longest_cache_hit", 3, ()),
    ("vllm.v1.core.sched.scheduler", "Scheduler.schedule", 1, ()),
    ("vllm.v1.core.sched.scheduler", "Scheduler.update_from_output", 3, ()),
    ("vllm.v1.core.sched.scheduler", "Scheduler.get_request_counts", 1, ()),
    ("vllm.v1.core.sched.scheduler", "Scheduler.add_request", 2, ()),
    ("vllm.v1.core.sched.scheduler", "Scheduler.finish_requests", 3, ()),
    ("vllm.v1.core.sched.scheduler", "Scheduler._get_local_prefix_cache_hit", 2, ()),
    ("vllm.v1.request", "Request", 4,
     ("client_index", "arrival_time", "lora_request", "cache_salt", "priority", "block_hasher")),
    ("vllm.v1.engine", "EngineCoreOutput", 2, ("finish_reason",)),
    ("vllm.forward_context", "set_forward_context", 2,
     ("num_tokens", "slot_mapping", "skip_compiled")),
    ("vllm.v1.worker.gpu_worker", "Worker.initialize_from_config", 2, ()),
    ("vllm.v1.worker.gpu_worker", "Worker.determine_available_memory", 1, ()),
    ("vllm.v1.worker.gpu_worker", "Worker.get_model", 1, ()),
    ("vllm.v1.worker.gpu_worker", "Worker.get_kv_connector_handshake_metadata", 1, ()),
)
"""(module, function, positional arguments with self, keywords): what is called, and with what."""
