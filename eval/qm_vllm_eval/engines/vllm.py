"""QuickMerge through the plug-in in real vLLM, on the samples that the reference gets."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from qm_vllm import local_engine
from qm_vllm.config import QuickMergeConfig
from qm_vllm.reports import REPORT_KEY
from qm_vllm.request_options import request_args
from qm_vllm_eval.engines.base import Cell, budget, make_row
from qm_vllm_eval.methods import quickmerge, truncation
from qm_vllm_eval.prompt import Prompt
from qm_vllm_eval.row import Row
from qm_vllm_eval.sample import Sample

ONLY = "not applicable: the vLLM engine runs none, plain, truncation and the quickmerge variants"
BLIND = (
    "not applicable: the plug-in compresses whole prompts; compressing a context before the "
    "question is known is measured by --engine reference"
)


class VllmEngine:
    """The plug-in, through its public API.

    Args:
        model: folder or name.
        dtype: as vLLM takes it.
        block_size: tokens of a KV block; K is rounded to whole blocks plus one.
        max_model_len: longest prompt plus output, in tokens.
    """

    def __init__(
        self, model: str | Path, *, dtype: str = "auto", block_size: int = 32,
        max_model_len: int | None = None,
    ) -> None:
        from transformers import AutoConfig

        from qm_vllm_eval.engines.forced import ForcedTokens

        self.llm = local_engine.start(
            model, QuickMergeConfig(enabled=False), max_model_len=max_model_len, dtype=dtype,
            block_size=block_size, enforce_eager=True, logits_processors=[ForcedTokens],
        )
        self.block_size = block_size
        self.tokenizer = self.llm.get_tokenizer()
        running = self.llm.llm_engine.model_config
        self.dtype = str(running.dtype).removeprefix("torch.")
        config = AutoConfig.from_pretrained(str(model))
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.bytes_per_token = int(
            config.num_hidden_layers * 2 * config.num_key_value_heads * size
            * running.dtype.itemsize
        )

    def facts(self) -> dict[str, Any]:
        """See :class:`qm_vllm_eval.engines.base.Engine`."""
        return {
            "engine": "vllm", "dtype": self.dtype, "block_size": self.block_size,
            "kv_bytes_per_token": self.bytes_per_token, "enforce_eager": True,
        }

    def learned(self) -> dict[str, dict[str, str]]:
        """Nothing; see :class:`qm_vllm_eval.engines.base.Engine`."""
        return {}

    def close(self) -> None:
        """Shut the engine down."""
        local_engine.shut_down(self.llm)

    def evaluate(self, sample: Sample, cells: Sequence[Cell]) -> Iterator[list[Row]]:
        """See :class:`qm_vllm_eval.engines.base.Engine`."""
        for cell in cells:
            yield [self._evaluate(sample, cell)]

    def answer(self, sample: Sample, most: int) -> list[int]:
        """See :class:`qm_vllm_eval.engines.base.Engine`."""
        told = self._ask(Prompt.of(sample, self.tokenizer).ids, most, {}).outputs[0]
        ids = list(told.token_ids)
        # A stop string is never asked for, so this is an end token of the model or its tokenizer.
        return ids[:-1] if told.finish_reason == "stop" else ids

    def _evaluate(self, sample: Sample, cell: Cell) -> Row:
        tokens = Prompt.of(sample, self.tokenizer)
        prompt, target, name = tokens.ids, tokens.target, cell[0].name
        problem = self._problem(sample, name)
        if problem:
            return make_row(sample, cell, prompt_tokens=len(prompt), status=problem)
        ids, options = prompt, {}
        if name == "none":
            ids = tokens.bare
        elif name == truncation.METHOD.name:
            k = budget(len(prompt), cell[1], self.block_size)
            ids = [prompt[i] for i in truncation.kept_positions(len(prompt), k).tolist()]
        elif name != "plain":
            k = budget(len(prompt), cell[1], self.block_size)
            given = quickmerge.options(name, k, visible=True)
            options = request_args(enabled=True, keep_roles="none", **given)
        start = time.perf_counter()
        forced = self._ask(ids, len(target), options | {"forced_tokens": target}, logprobs=0)
        seconds = time.perf_counter() - start
        report = (forced.kv_transfer_params or {}).get(REPORT_KEY) or {}
        if options and report.get("status") != "compressed":
            reason = report.get("reason", "the plug-in gave no report")
            return make_row(sample, cell, prompt_tokens=len(prompt), status=str(reason))
        said = forced.outputs[0].logprobs
        losses = [-said[i][token].logprob for i, token in enumerate(target)]
        free = self._ask(ids, max(len(target), sample.max_new_tokens), options)
        told = list(free.outputs[0].token_ids)
        return make_row(
            sample, cell,
            prompt_tokens=len(prompt),
            kept_tokens=report.get("kept_tokens", len(ids)),
            bytes_per_token=self.bytes_per_token,
            nll=sum(losses) / len(losses),
            accuracy=sum(said[i][token].rank == 1 for i, token in enumerate(target)) / len(target),
            exact=told[: len(target)] == target,
            prediction=self._text(sample, told, target),
            seconds=seconds,
        )

    def _ask(self, ids: list[int], tokens: int, extra: dict[str, Any], **more: Any) -> Any:
        from vllm import SamplingParams

        params = SamplingParams(
            max_tokens=tokens, temperature=0.0, extra_args=extra or None, detokenize=False,
            ignore_eos="forced_tokens" in extra, **more,
        )
        (output,) = self.llm.generate({"prompt_token_ids": ids}, params, use_tqdm=False)
        return output

    def _text(self, sample: Sample, told: list[int], target: list[int]) -> str:
        """The prediction by the reference's rule: the target alone where it was repeated."""
        if sample.max_new_tokens == 0:
            return ""
        ids = target if told[: len(target)] == target else told[: sample.max_new_tokens]
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def _problem(self, sample: Sample, name: str) -> str | None:
        if name in ("none", "plain"):
            return None
        if name not in (*quickmerge.VARIANTS, truncation.METHOD.name):
            return ONLY
        if not sample.query_visible:
            return BLIND
        return None
