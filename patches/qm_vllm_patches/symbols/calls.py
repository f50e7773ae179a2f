"""Methods that vLLM calls here, and functions of vLLM that are called, with what is passed."""

from __future__ import annotations

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
     ("client_index", "arrival_time", "lora_request", "cache_salt", "priority", "block_hasher",
      "mm_features")),
    ("vllm.v1.engine", "EngineCoreOutput", 2, ("finish_reason",)),
    ("vllm.forward_context", "set_forward_context", 2,
     ("num_tokens", "slot_mapping", "skip_compiled")),
    ("vllm.v1.worker.gpu_worker", "Worker.initialize_from_config", 2, ()),
    ("vllm.v1.worker.gpu_worker", "Worker.determine_available_memory", 1, ()),
    ("vllm.v1.worker.gpu_worker", "Worker.get_model", 1, ()),
    ("vllm.v1.worker.gpu_worker", "Worker.get_kv_connector_handshake_metadata", 1, ()),
)
"""(module, function, positional arguments with self, keywords): what is called, and with what."""
