"""A small task for the tests under Ray, and a driver that runs it in a process of its own."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qm_vllm_eval.ray.work import TOO_LONG, Answer, EngineSettings, Unit
from tests.engines import random_prompt

RATIOS = (1.0, 0.5)


@dataclass(frozen=True)
class RandomPrompts:
    """Random token ids of growing length at two ratios; row 2 is too long.

    ``embeddings``: one row more, of ``prompt_embeds`` [N, 128]; only actors take it.
    """

    rows: int = 6
    max_tokens: int = 24
    embeddings: bool = False
    name = "random"
    metrics = ("length",)
    flags = ()

    def units(self) -> Iterator[Unit]:
        sampling = {"max_tokens": self.max_tokens, "temperature": 0.0, "ignore_eos": True,
                    "detokenize": False}
        for number in range(self.rows):
            for ratio in RATIOS:
                if number == 2:
                    reason = "the prompt has too many tokens"
                    yield Unit(f"row-{number}", ratio, failure=TOO_LONG, reason=reason)
                    continue
                yield Unit(
                    f"row-{number}", ratio,
                    prompt={"prompt_token_ids": random_prompt(300 + 60 * number, seed=number)},
                    sampling=sampling,
                    options={"enabled": False} if ratio == 1.0 else
                            {"ratio": ratio, "min_tokens": 64},
                )
        if self.embeddings:
            import torch

            held = torch.randn(200, 128, generator=torch.Generator().manual_seed(0))
            yield Unit("row-embeddings", 1.0, prompt={"prompt_embeds": held},
                       sampling=sampling | {"logprobs": 1}, options={"enabled": False})

    def score(self, facts: Mapping[str, Any], answer: Answer) -> dict[str, Any]:
        return {"length": float(len(answer.token_ids)), "tokens": list(answer.token_ids),
                "logprobs": answer.logprobs}

    def settings(self) -> dict[str, Any]:
        return {"task": self.name, "max_tokens": self.max_tokens}

    def facts(self) -> dict[str, Any]:
        return {"scorer": "number of tokens"}


def settings(model: str | Path) -> EngineSettings:
    """Of a tiny model without a tokenizer."""
    return EngineSettings(
        model=str(model), dtype="float32", max_model_len=2048,
        config={"score_layers": (1, 2)},
        extra={"skip_tokenizer_init": True, "enable_prompt_embeds": True},
    )


def main() -> None:
    """``python -m tests.integration.ray_task MODEL OUT ENGINE``: run until it ends or is killed."""
    from qm_vllm_eval.ray.runner import RunOptions, run

    model, out, engine = sys.argv[1:4]
    options = RunOptions(Path(out), engine=engine)
    task = RandomPrompts(embeddings=True)
    run(task, settings(model), "tiny", options, lambda row: print("row", flush=True))


if __name__ == "__main__":
    main()
