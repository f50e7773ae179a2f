"""Attributes of vLLM's classes that are read or called."""

from __future__ import annotations

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
    "RequestStatus": (
        "FINISHED_ABORTED", "FINISHED_ERROR", "RUNNING", "WAITING_FOR_REMOTE_KVS",
    ),
    "LoRARequest": ("lora_name",),
    "Scheduler": (
        "_get_local_prefix_cache_hit", "add_request", "connector", "finish_requests",
        "finished_recving_kv_req_ids", "get_request_counts", "kv_cache_manager", "make_stats",
        "requests", "schedule", "update_from_output",
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
        "finished_req_ids", "kv_cache_block_copies", "kv_connector_block_state",
        "num_scheduled_tokens",
        "total_num_scheduled_tokens",
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
    "SchedulerConfig": (
        "async_scheduling", "max_num_batched_tokens", "policy", "scheduler_cls",
    ),
    "CompilationConfig": ("cudagraph_mode",),
    "DeviceConfig": ("device_type",),
    "ParallelConfig": (
        "data_parallel_size", "decode_context_parallel_size", "enable_expert_parallel",
        "pipeline_parallel_size", "prefill_context_parallel_size", "tensor_parallel_size",
    ),
    "CacheConfig": (
        "block_size", "cache_dtype", "enable_prefix_caching", "kv_cache_memory_bytes",
    ),
    "KVTransferConfig": ("kv_connector", "kv_connector_extra_config"),
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
    "KVConnectorFactory": ("_registry", "register_connector"),
    "MultiConnector": ("sub_connectors",),
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
