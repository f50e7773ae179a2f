"""QuickMerge with the AR prior in the model's path: as a score, and as a corrector.

The prior is trained by ``scripts/train_in_model_prior.py``; QM_VLLM_PRIOR names its folder.
"""

from __future__ import annotations

import math
import os
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch

from qm_vllm.assets.cache import cache_folder
from qm_vllm.compress import finish
from qm_vllm_eval.methods.base import Method, Request, Unfit
from qm_vllm_eval.methods.quickmerge import deliver, merged_by, options
from qm_vllm_eval.reference.reader import CompressedContext

VARIABLE = "QM_VLLM_PRIOR"
SPARE = 1.25
"""The score chooses among this many times K tokens."""


def folder() -> Path:
    """Where the trained prior lies."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else cache_folder() / "in-model-prior"


@cache
def _prior(path: Path):
    from qm_vllm_eval.methods.in_model_prior import load

    try:
        return load(path)
    except ValueError as error:
        raise Unfit(str(error)) from error


def corrected(request: Request) -> CompressedContext:
    """The merged states corrected before the upper layers read them."""
    merged = merged_by(options("quickmerge", request.k, visible=request.visible), request)
    states = merged.states
    if request.k < request.tokens:
        states = _fitting(request).correct(states)
    return deliver(request, states, merged.kept, merged.config)


def surprising(request: Request) -> CompressedContext:
    """A quarter more than K are chosen; the ones that the prior predicts best are dropped."""
    chosen = options("quickmerge", request.k, visible=request.visible)
    spare = min(request.tokens, math.ceil(SPARE * request.k))
    if request.k >= request.tokens:
        whole = merged_by(chosen, request)
        return deliver(request, whole.states, whole.kept, whole.config)
    wide = merged_by({**chosen, "max_kept": spare}, replace(request, k=spare))
    if wide.scores is None:  # the spare covers the prompt: every token is a candidate
        wide = replace(
            merged_by(chosen, request), states=request.prefill.states[wide.depth], kept=wide.kept
        )
    assert wide.evidence is not None
    assert wide.scores is not None
    assert wide.protected is not None
    errors = _fitting(request).surprise(wide.states).cpu()
    errors = errors.masked_fill(wide.protected[wide.kept], float("inf"))
    kept = wide.kept[errors.topk(request.k).indices.sort().values]
    states = request.prefill.states[wide.depth]
    merged = finish(states, wide.evidence, wide.scores, kept, wide.config)
    return deliver(request, merged.states, kept, wide.config)


def _fitting(request: Request):
    prior = _prior(folder())
    width = int(request.decoder.config.hidden_size)
    if prior.config.input_size != width:
        raise Unfit(
            f"the prior was trained on states of width {prior.config.input_size}, the model's "
            f"have {width}"
        )
    return prior


CORRECTED = Method(
    "quickmerge-corrected",
    "quickmerge, the merged states corrected by a trained AR prior (zero-initialised residual)",
    lambda request: _no_grad(corrected, request),
)
SURPRISING = Method(
    "quickmerge-surprise",
    f"quickmerge with {SPARE:g} K candidates, of which a trained AR prior drops the most "
    "predictable",
    lambda request: _no_grad(surprising, request),
)


def _no_grad(compress, request: Request) -> CompressedContext:
    with torch.inference_mode():
        result: CompressedContext = compress(request)
    return result
