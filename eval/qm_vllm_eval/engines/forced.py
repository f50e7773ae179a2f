"""Makes vLLM say given tokens, so that their likelihood can be read from the sampled logprobs.

A public hook of vLLM (custom logits processors). Requests without ``forced_tokens`` in their
``extra_args`` are left alone.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

KEY = "forced_tokens"


class ForcedTokens(AdapterLogitsProcessor):
    """Step i of a request may only sample ``extra_args["forced_tokens"][i]``.

    vLLM computes logprobs from the logits before any processor (``logprobs_mode`` of
    "raw_logprobs"), so they are the model's own.
    """

    def is_argmax_invariant(self) -> bool:
        """It changes what is sampled."""
        return False

    def new_req_logits_processor(self, params: Any) -> Any:
        """The processor of one request, or None."""
        tokens = (params.extra_args or {}).get(KEY)
        if not tokens:
            return None

        def force(output_ids: list[int], logits: torch.Tensor) -> torch.Tensor:
            step = len(output_ids)
            if step >= len(tokens):
                return logits
            only = torch.full_like(logits, float("-inf"))
            only[tokens[step]] = 0.0
            return only

        return force
