"""What one method did with one sample at one ratio: a line of the predictions table."""

from __future__ import annotations

import math
from dataclasses import dataclass

OK = "ok"


@dataclass(frozen=True)
class Row:
    """A measurement. Where ``status`` is not "ok" it is the reason, and the figures are NaN.

    Attributes:
        ratio: share of the prompt that was asked for; 1.0 for plain, 0.0 for none.
        prompt_tokens: N. kept_tokens: KV entries per layer of prompt positions, mean over
            layers; kept_ratio is kept_tokens / N.
        nll: mean negative log-likelihood of the target's tokens, nats per token.
        exact: 1.0 if greedy decoding starts with the target's tokens, else 0.0.
        match: score by the sample's metric, in [0, 1]; NaN for "none".
        kv_bytes: bytes of KV for the kept positions, all layers.
        evidence_kept: share of the tokens that tell the answer whose positions were kept; NaN where
            the data do not name them or the method keeps no list of positions.
        seconds: what compression and delivery took for this row, without the shared prefill.
    """

    sample_id: str
    task: str
    family: str
    query_visible: bool
    haystack: str
    length: int
    index: int
    method: str
    ratio: float
    prompt_tokens: int
    kept_tokens: float
    kept_ratio: float
    nll: float
    exact: float
    match: float
    kv_bytes: float
    seconds: float
    prediction: str
    target: str
    status: str = OK
    evidence_kept: float = math.nan
