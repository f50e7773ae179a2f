"""Modules of vLLM, the names that are taken from them, and the files that take them."""

from __future__ import annotations

CONNECTOR = "vllm.distributed.kv_transfer.kv_connector.v1.base"
METRICS = "vllm.distributed.kv_transfer.kv_connector.v1.metrics"

IMPORTS: dict[str, tuple[tuple[str, ...], str]] = {
    CONNECTOR: (
        ("KVConnectorBase_V1", "KVConnectorHandshakeMetadata", "KVConnectorMetadata",
         "KVConnectorRole", "KVConnectorWorkerMetadata", "SupportsHMA"),
        "connector.py, messages.py, worker_steps.py",
    ),
    "vllm.distributed.kv_transfer.kv_connector.factory": (
        ("KVConnectorFactory",), "connector.py",
    ),
    METRICS: (("KVConnectorPromMetrics", "KVConnectorStats"), "metrics.py, connector.py"),
    "vllm.config": (
        ("KVTransferConfig", "ModelConfig", "VllmConfig", "set_current_vllm_config"),
        "settings.py, connector.py, own_forward.py, stage.py",
    ),
    "vllm.forward_context": (
        ("ForwardContext", "get_forward_context", "set_forward_context"),
        "connector.py, own_forward.py, worker_steps.py",
    ),
    "vllm.model_executor.layers.attention": (
        ("Attention",), "attention_layers.py, shorter_tables.py",
    ),
    "vllm.multimodal.inputs": (("MultiModalFeatureSpec", "PlaceholderRange"), "media.py"),
    "vllm.sampling_params": (
        ("SamplingParams",), "requests.py, first_token.py, held_request.py",
    ),
    "vllm.v1.request": (
        ("Request", "RequestStatus"),
        "requests.py, company.py, connector.py, scheduler.py, first_token.py, true_figures.py, "
        "held_request.py, media.py",
    ),
    "vllm.v1.core.block_pool": (("BlockPool",), "block_pool.py, connector.py"),
    "vllm.v1.core.kv_cache_utils": (("KVCacheBlock",), "block_pool.py"),
    "vllm.v1.core.kv_cache_coordinator": (("KVCacheCoordinator",), "scheduler.py"),
    "vllm.v1.core.kv_cache_manager": (
        ("KVCacheBlocks", "KVCacheManager"), "connector.py, scheduler.py, true_figures.py",
    ),
    "vllm.v1.core.sched.async_scheduler": (("AsyncScheduler",), "scheduler.py"),
    "vllm.v1.core.sched.output": (
        ("KVConnectorBlockState", "SchedulerOutput"),
        "company.py, connector.py, scheduler.py, worker_steps.py",
    ),
    "vllm.v1.core.sched.scheduler": (("Scheduler",), "scheduler.py"),
    "vllm.v1.engine": (
        ("EngineCoreOutput", "EngineCoreOutputs"), "scheduler.py, true_figures.py",
    ),
    "vllm.entrypoints.serve.utils.api_utils": (("get_max_tokens",), "long_prompts.py"),
    "vllm.exceptions": (("VLLMValidationError",), "frontend.py, llm.py, long_prompts.py"),
    "vllm.v1.engine.async_llm": (("AsyncLLM",), "long_prompts.py"),
    "vllm.v1.engine.input_processor": (("InputProcessor",), "long_prompts.py"),
    "vllm.v1.engine.llm_engine": (("LLMEngine",), "long_prompts.py"),
    "vllm.v1.engine.output_processor": (("OutputProcessor",), "frontend.py"),
    "vllm.v1.metrics.stats": (("PrefillStats", "SchedulerStats"), "scheduler.py"),
    "vllm.v1.kv_cache_interface": (
        ("FullAttentionSpec", "KVCacheConfig", "KVCacheGroupSpec", "SlidingWindowSpec"),
        "settings.py, connector.py, stage.py, layer_groups.py",
    ),
    "vllm.v1.outputs": (
        ("KVConnectorOutput", "ModelRunnerOutput"), "connector.py, held_request.py",
    ),
    "vllm.distributed": (
        ("get_tensor_model_parallel_world_size", "get_tp_group", "model_parallel_is_initialized",
         "tensor_model_parallel_all_gather"),
        "ranks.py",
    ),
    "vllm.distributed.kv_transfer": (
        ("get_kv_transfer_group", "has_kv_transfer_group", "kv_transfer_state"),
        "worker.py, worker_steps.py",
    ),
    "vllm.platforms": (("current_platform",), "worker.py"),
    "vllm.tokenizers": (("cached_tokenizer_from_config",), "settings.py"),
    "vllm.utils.torch_utils": (("STR_DTYPE_TO_TORCH_DTYPE",), "settings.py"),
    "vllm.v1.worker.cpu_worker": (("CPUWorker",), "worker.py"),
    "vllm.v1.worker.gpu_worker": (("Worker",), "worker.py"),
    "vllm.v1.worker.kv_connector_model_runner_mixin": (
        ("KVConnectorModelRunnerMixin",), "worker_steps.py",
    ),
    "vllm.v1.worker.gpu.kv_connector": (("ActiveKVConnector",), "worker_steps.py"),
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
    "vllm.v1.attention.backend": (("CommonAttentionMetadata",), "own_forward.py"),
    "vllm.v1.core.single_type_kv_cache_manager": (("FullAttentionManager",), "layer_groups.py"),
    "vllm.v1.kv_cache_spec_registry": (("KVCacheSpecRegistry",), "layer_groups.py"),
}
"""Used by commands, by the prior, or when a model is looked into, which fails with a sentence."""
