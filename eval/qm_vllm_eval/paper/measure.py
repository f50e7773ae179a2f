"""One cell of Tables 1 and 2: a method on a task with a seed, trained and measured."""

from __future__ import annotations

import time
from typing import Any

import torch

from qm_vllm_eval.baselines import METHODS, Spec, calibrate_alpha
from qm_vllm_eval.frechet import Gaussian, frechet_distance
from qm_vllm_eval.paper.decoder import Trained, sampled, target_nats, train
from qm_vllm_eval.paper.prepared import Prepared
from qm_vllm_eval.paper.scale import Scale
from qm_vllm_eval.paper.video import descriptors
from qm_vllm_eval.perplexity import Perplexity

PAPER_ALPHA = 0.45


def cell(
    name: str, prepared: Prepared, scale: Scale, seed: int, device: torch.device
) -> dict[str, Any]:
    """Train one method on one task and measure it on what was held out.

    Args:
        name: of :data:`METHODS`.

    Returns:
        "ppl" (text), "accuracy" in per cent (image), "fvd" and "code_ppl" (video); tokens kept
        "kept_mean", "kept_std" over the sequences, "rate" = N / their mean; the loss at the start
        and the end of training in nats, trained parameters, seconds.
    """
    started = time.perf_counter()
    built = METHODS[name](spec(prepared))
    trained = train(built, prepared, scale, seed, device)
    nats, right, kept = target_nats(trained, prepared.test, scale.batch * 4, device)
    row: dict[str, Any] = {
        "kept_mean": float(kept.double().mean()),
        "kept_std": float(kept.double().std(correction=0)),
        "rate": prepared.num_tokens / float(kept.double().mean()),
        "loss_first": trained.losses[0], "loss_last": trained.losses[1],
        "parameters": trained.parameters,
    }
    if prepared.task == "text":
        row["ppl"] = _perplexity(nats + prepared.test.extra_nats, prepared)
    elif prepared.task == "image":
        row["accuracy"] = 100 * float(right[:, 0].double().mean())
    else:
        row["code_ppl"] = _perplexity(nats, prepared)
        row["fvd"] = _frechet(trained, prepared, scale, seed, device)
    row["seconds"] = time.perf_counter() - started
    return row


def spec(prepared: Prepared) -> Spec:
    """What methods must know of a task; alpha is chosen on the training sequences."""
    alpha = calibrate_alpha(prepared.train.absolute, Spec.factor)
    return Spec(prepared.width, prepared.num_tokens, prepared.train.raw.shape[1], alpha)


def facts(prepared: Prepared) -> dict[str, Any]:
    """About a task, for the record: sizes, alpha, what the paper's alpha would keep, floors.

    "fvd_codes" is the distance of the real continuations to themselves as codes: no decoder that
    says codes gets below it but by chance. "fvd_train" is that of training continuations.
    """
    held = {
        "data": prepared.data, "encoder": prepared.encoder, "vocabulary": prepared.vocabulary,
        "num_tokens": prepared.num_tokens, "width": prepared.width,
        "train": len(prepared.train), "test": len(prepared.test),
        "alpha": spec(prepared).alpha,
        "kept_at_paper_alpha": float(
            (prepared.test.saliency >= PAPER_ALPHA).double().mean()
        ),
        "kept_at_paper_alpha_absolute": float(
            (prepared.test.absolute >= PAPER_ALPHA).double().mean()
        ),
    }
    if prepared.task == "video":
        real = _fit(prepared.test.truth)
        held["fvd_codes"] = frechet_distance(real, _fit(prepared.codes[prepared.test.targets]))
        held["fvd_train"] = frechet_distance(real, _fit(prepared.train.truth))
    return held


def _perplexity(nats: torch.Tensor, prepared: Prepared) -> float:
    total = Perplexity()
    total.add(nats, prepared.test.units.long())
    return total.perplexity


def _frechet(
    trained: Trained, prepared: Prepared, scale: Scale, seed: int, device: torch.device
) -> float:
    count = prepared.test.targets.shape[1]
    ids = sampled(trained, prepared.test, count, scale.batch * 4, seed, device)
    return frechet_distance(_fit(prepared.test.truth), _fit(prepared.codes[ids]))


def _fit(clips: torch.Tensor) -> Gaussian:
    return Gaussian.fit(descriptors(clips).double().numpy())
