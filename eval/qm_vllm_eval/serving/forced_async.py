"""``qm-vllm`` with the asynchronous scheduling of GPUs, which vLLM switches off on a CPU.

    python -m qm_vllm_eval.serving.forced_async serve MODEL ...

For soak tests alone: it finds what comes of results that arrive a step late.
"""

from __future__ import annotations

from typing import Any


def force() -> None:
    """Let vLLM's CPU platform leave asynchronous scheduling on, in this process."""
    from vllm.platforms.cpu import CpuPlatform

    original = CpuPlatform.check_and_update_config.__func__

    def forced(platform: Any, config: Any) -> None:
        original(platform, config)
        config.scheduler_config.async_scheduling = True

    CpuPlatform.check_and_update_config = classmethod(forced)


if __name__ == "__main__":
    from qm_vllm.cli.main import app

    force()
    app()
