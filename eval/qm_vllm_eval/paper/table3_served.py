"""Table 3 for a served language model: plain vLLM against the plug-in, an engine for each."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from qm_vllm_eval.paper.table3_engine import Run, Table3Settings, device, run, start

METHODS = ("baseline", "quickmerge")
WARM_UP = 2048
"""Longest prompt of a warm-up on a CPU, which needs it for no shape but its first."""


class ServedBench:
    """One engine: plain vLLM, or vLLM with the plug-in.

    Every run has prompts of its own, so no memo and no cache can help; both engines get the same.
    The plug-in may have the whole batch in its encoder at once, as vLLM may prefill all of it in
    one step; what it keeps of running jobs lies outside of the KV cache and is not counted.
    """

    def __init__(self, settings: Table3Settings, model: str, method: str) -> None:
        from qm_vllm import QuickMergeConfig, engine_args

        self.settings, self.model = settings, model
        most = max(length * batch for length, batch in settings.served)
        options = {} if method == "baseline" else engine_args(QuickMergeConfig(
            ratio=settings.ratio, min_tokens=2, encoder_chunk_tokens=max(16, most),
            max_source_tokens=most, max_live_jobs=max(batch for _, batch in settings.served),
        ))
        tokens = has_tokenizer(model)
        self.llm = start(
            model, settings, settings.served, skip_tokenizer_init=not tokens, **options
        )
        self._ids = self._essay() if tokens else []
        dtype = str(self.llm.llm_engine.model_config.dtype).removeprefix("torch.")
        self.facts = {"model": Path(model).name, "dtype": dtype, "device": device()}

    def __call__(self, length: int, batch: int, repeat: int, measured: bool) -> Run:
        """One batch; a warm-up generates only three tokens, and its times may be missing."""
        if not measured and self.facts["device"] == "cpu":
            length = min(length, WARM_UP)
        prompts = [
            {"prompt_token_ids": self._prompt(length, repeat * batch + number)}
            for number in range(batch)
        ]
        generated = self.settings.generated if measured else 3
        return run(self.llm, prompts, generated, measured=measured)

    def _essay(self) -> list[int]:
        from qm_vllm.assets.essay import demo_document

        return list(self.llm.get_tokenizer().encode(demo_document().text))

    def _prompt(self, length: int, number: int) -> list[int]:
        """Prose from a start of its own; random tokens for a model without a tokenizer."""
        if not self._ids:
            size = json.loads((Path(self.model) / "config.json").read_text())["vocab_size"]
            draw = random.Random(number)
            return [draw.randrange(3, size) for _ in range(length)]
        skip = 97 * number % len(self._ids)
        return (self._ids * (2 + length // len(self._ids)))[skip : skip + length]


def has_tokenizer(model: str) -> bool:
    """False for a folder of random weights; a name on a hub counts as having one."""
    return not Path(model).is_dir() or (Path(model) / "tokenizer_config.json").is_file()


def named_model(model: str | None) -> str:
    """The model's folder or name; the embedded SmolLM2 where none was named."""
    from qm_vllm.assets.embedded import ensure_model

    return model or str(ensure_model())


def alternating(repeat: int) -> tuple[Any, ...]:
    """The methods, every other time the other way round."""
    return METHODS[:: -1 if repeat % 2 else 1]
