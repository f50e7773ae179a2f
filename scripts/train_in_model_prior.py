#!/usr/bin/env python
"""Trains the AR prior in the model's own path (score and corrector), for the bench to judge.

    .venv/bin/python scripts/train_in_model_prior.py --minutes 15 --out prior-folder
    QM_VLLM_PRIOR=prior-folder .venv/bin/qm-vllm compare --methods \
        quickmerge,quickmerge-corrected,quickmerge-surprise --ratios 0.4167,0.25 ...

Training text: the "tune" half of the haystacks; the bench's "report" half is never read here.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from qm_vllm.assets import embedded
from qm_vllm.prior.checkpoint import publish, replace_file
from qm_vllm_eval.engines.reference import ReferenceEngine
from qm_vllm_eval.haystacks import available, documents
from qm_vllm_eval.prior.train import InModelTrainer

WINDOW = 50
"""Steps that a line of the history is a mean over."""


def main() -> None:
    """Parse, train, save."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", help="folder; default: the embedded SmolLM2")
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--length", type=int, default=512, help="tokens of a window")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    folder = args.model or embedded.ensure_model()
    engine = ReferenceEngine(folder, dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [
        tokenizer(document.text, add_special_tokens=False, verbose=False)["input_ids"]
        for name in available() for document in documents(name, "tune")
    ]
    trainer = InModelTrainer(
        engine.decoder, texts, length=args.length, learning_rate=args.learning_rate,
        seed=args.seed,
    )
    history: list[dict[str, Any]] = []
    recent: list[dict[str, Any]] = []

    def report(figures: dict[str, Any]) -> None:
        recent.append(figures)
        if len(recent) == WINDOW:
            names = ("corrected", "merged", "predict")
            mean = {name: sum(one[name] for one in recent) / WINDOW for name in names}
            history.append({"step": figures["step"], "seconds": figures["seconds"], **mean})
            print(json.dumps(history[-1]), flush=True)
            recent.clear()

    prior = trainer.run(args.minutes * 60, report)
    args.out.mkdir(parents=True, exist_ok=True)
    publish(args.out, prior)
    replace_file(args.out / "history.json", json.dumps(history, indent=1) + "\n")
    print(args.out)


if __name__ == "__main__":
    main()
