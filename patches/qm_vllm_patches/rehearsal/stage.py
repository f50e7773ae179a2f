"""What a rehearsal is played with: a small configuration, a connector, and those who listen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qm_vllm_patches.connector import ConnectorBase

BLOCK, BLOCKS, PROMPT, KEPT, ANSWER = 16, 32, 80, 33, [7, 8, 9]
"""Tokens of a block, blocks of the pool, tokens of the prompt, those kept of it, the answer."""


class Missed(Exception):
    """vLLM did something else than this project needs; the message is the sentence."""


def expect(condition: Any, otherwise: str) -> None:
    if not condition:
        raise Missed(otherwise)


class Listener:
    """The scheduler's half: holds a request back until a worker has spoken, then keeps K tokens.

    Attributes:
        holes: of each KV-cache group, the first blocks of a shrunk request that are nobody's.
        brings: what was kept is brought, and not found in the prefix cache.
    """

    def __init__(self) -> None:
        self.holes, self.brings = [0], False
        self.heard: list[str] = []
        self.handle: Any = None
        self.store: Any = None
        self.shadows: Any = None
        self.steps: Sequence[Any] = ()
        self.ready = False

    @property
    def telling(self) -> Any:
        return self

    def cached_of(self, request_id: str) -> None: ...
    def looked_up(self, request_id: str) -> None: ...
    def take_counts(self) -> None: ...
    def allocated(self, *args: Any) -> None: ...

    def report_so_far(self, request_id: str, num_blocks: int) -> dict[str, Any]:
        return {}

    def bind_blocks(self, store: Any) -> None:
        self.store = store

    def bind_shadows(self, shadows: Any) -> None:
        self.shadows = shadows

    def arrived(self, request: Any) -> None:
        self.handle = request.handle

    def before_step(self) -> None:
        if "worker_message" in self.heard and "shadow_ended" not in self.heard:
            ids = self.handle.request.prompt_token_ids
            self.shadows.start(self.handle, "shadow", ids, None, last=BLOCK, first=True)
        elif "first_token" in self.heard and not self.ready:
            kept = self.handle.request.prompt_token_ids[:KEPT]
            self.handle.resize(kept, "salt")
            self.handle.leave_out(max(self.holes))
            for group, hole in enumerate(() if self.brings else self.holes):
                blocks = self.store.take(KEPT // BLOCK - hole)
                self.store.publish(self.handle, blocks, group, hole)
                self.store.give_back(blocks)
            self.shadows.begin(self.handle, ANSWER[0])
            self.ready = True

    def matched_tokens(self, request_id: str, computed: int) -> int | None:
        self.heard.append("matched_tokens")
        if not self.ready:
            return None
        return KEPT // BLOCK * BLOCK - computed if self.brings else 0

    def step_message(self, tokens: int, shadows: Sequence[Any], counts: Any) -> str:
        self.steps = shadows
        return "step"

    def worker_message(self, message: Any) -> None:
        self.heard.append("worker_message")

    def shadow_ended(self, shadow: str) -> None:
        self.heard.append("shadow_ended")

    def first_token(self, shadow: str, token: int) -> None:
        self.heard.append("first_token")

    def finished(self, request_id: str, num_blocks: int) -> dict[str, Any]:
        self.heard.append("finished")
        return {}


class Worker:
    """A worker's half."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.kv_caches: dict[str, Any] = {}

    def begin(self, message: Any) -> None:
        self.heard.append("begin")

    def load(self, message: Any) -> None:
        self.heard.append("load")

    def work(self, message: Any) -> None:
        self.heard.append("work")

    def collect(self) -> str:
        self.heard.append("collect")
        return "done"

    def take_failed_blocks(self) -> set[int]:
        return set()


class RehearsalConnector(ConnectorBase):
    """Our connector between vLLM and two listeners."""

    REPORT = "rehearsal"

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super(ConnectorBase, self).__init__(vllm_config, role, kv_cache_config)
        self._own_sampling = self._by_priority = False
        self.scheduler_side: Any = Listener()
        self.worker_side: Any = Worker()

    def make_scheduler_side(self, settings: Any, cache: Any) -> Any:
        raise NotImplementedError

    def make_worker_side(self, settings: Any, cache: Any) -> Any:
        raise NotImplementedError


class _Model:
    """The configuration of a model of which a scheduler needs nothing else."""

    max_model_len, runner_type = 4 * PROMPT, "generate"

    def __getattr__(self, name: str) -> None:
        return None


def bare_config() -> Any:
    """vLLM's configuration with its defaults; what it derives from a real model is left out."""
    from vllm.config import KVTransferConfig, VllmConfig

    config: Any = object.__new__(VllmConfig)
    for name, field in VllmConfig.__pydantic_fields__.items():
        setattr(config, name, field.get_default(call_default_factory=True))
    config.model_config = _Model()
    config.cache_config.block_size = BLOCK
    config.cache_config.num_gpu_blocks = BLOCKS
    config.cache_config.enable_prefix_caching = True
    config.kv_transfer_config = KVTransferConfig(
        kv_connector="RehearsalConnector", kv_role="kv_both",
        kv_connector_module_path=__name__,
    )
    return config


def small_cache(*, grouped: bool = False) -> Any:
    """Of one layer, or of two of which the second keeps less."""
    import torch
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec

    spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=8, dtype=torch.float32)
    specs = {"one": spec}
    if grouped:
        from qm_vllm_patches.layer_groups import grouped as in_groups

        specs = in_groups({"one": spec, "two": spec}, ["one"])
    return KVCacheConfig(
        num_blocks=BLOCKS, kv_cache_tensors=[],
        kv_cache_groups=[KVCacheGroupSpec([name], own) for name, own in specs.items()],
    )
