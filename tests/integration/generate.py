"""Short calls into an in-process engine."""

from __future__ import annotations

from typing import Any


def greedy(max_tokens: int = 16, **extra: Any) -> Any:
    """Greedy sampling parameters that ignore EOS; ``extra`` are per-request options."""
    from vllm import SamplingParams

    from qm_vllm import request_args

    return SamplingParams(
        max_tokens=max_tokens, temperature=0.0, ignore_eos=True, detokenize=False,
        extra_args=request_args(**extra) if extra else None,
    )


def run(llm: Any, prompts: list[list[int]], params: Any) -> list[tuple[list[int], dict[str, Any]]]:
    """Token ids and the quickmerge report (empty without the plug-in) of each prompt."""
    inputs = [{"prompt_token_ids": list(ids)} for ids in prompts]
    outputs = llm.generate(inputs, params, use_tqdm=False)
    return [
        (list(out.outputs[0].token_ids), (out.kv_transfer_params or {}).get("quickmerge", {}))
        for out in outputs
    ]
