"""KVzip's press of kvpress, driven so that one reconstruction of a prompt serves every K.

Facts about kvpress 0.5.5 that this file builds on, from its sources: KVzipPress notes the ids
and the cache of the run inside its context; when the context is left, it lets the model repeat the
prompt in chunks, behind an instruction of its own, and scores each entry by the highest attention
from there; ``compress_post`` masks the entries with the lowest scores, which do not depend on K.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from kvpress import KVzipPress  # type: ignore[import-not-found,unused-ignore]
from torch import Tensor
from transformers import DynamicCache

from qm_vllm_eval.peers.prefill import Kept, Prefill, without_masked

MARK = "dummy context"


class ScoredKVzip(KVzipPress):  # type: ignore[misc,unused-ignore]
    """KVzip that leaves its scores behind, and skips no template that the prompt lacks."""

    scores: Tensor
    prefix_length: int

    def prepare(self, model: Any, tokenizer: Any, *args: Any) -> Any:
        """What is repeated; from the first token on where the prompt is not a single turn."""
        if self._context_ids[0, : self.prefix_length].tolist() != head_ids(tokenizer):
            self.prefix_length = 0
        return super().prepare(model, tokenizer, *args)

    def compress_post(self, model: Any) -> None:
        """Mask what is dropped, and keep the scores."""
        self.scores = self.score_val.clone()
        super().compress_post(model)


def head_ids(tokenizer: Any) -> list[int]:
    """The tokens of the chat template before a user's text."""
    if tokenizer.chat_template is None:
        return []
    turn = [{"role": "user", "content": MARK}]
    text = tokenizer.apply_chat_template(
        turn, add_generation_prompt=True, tokenize=False, enable_thinking=False
    )
    ids: list[int] = tokenizer.encode(text.split(MARK)[0], add_special_tokens=False)
    return ids


def compress(model: Any, press: ScoredKVzip, prefill: Prefill) -> Kept:
    """What KVzip leaves of a prefill; its scores are made once for a prompt."""
    if press.compression_ratio == 0:
        return Kept(prefill.kv)
    reused = 0.0
    with torch.inference_mode():
        if ScoredKVzip not in prefill.scores:
            started = time.perf_counter()
            cache = DynamicCache()
            for layer, (keys, values) in enumerate(prefill.kv):
                cache.update(keys, values, layer)
            with press(model):  # what its own run would note
                press._context_ids, press._cache = prefill.ids, cache
            prefill.scores[ScoredKVzip] = press.scores, time.perf_counter() - started
        else:
            scores, reused = prefill.scores[ScoredKVzip]
            press.score_val = scores.clone()
            press.compress_post(model)
        kept = without_masked(model, prefill.kv)
    kept.reused_seconds = reused
    return kept
