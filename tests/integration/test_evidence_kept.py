"""The share of the evidence that a method keeps, as the study's reference engine reports it."""

from __future__ import annotations

import math

import pytest

from qm_vllm.assets.embedded import ensure_model
from qm_vllm_eval.engines.reference import ReferenceEngine
from qm_vllm_eval.methods import choose_methods
from qm_vllm_eval.prompt import Prompt
from qm_vllm_eval.row import OK
from qm_vllm_eval.sample import Sample

FACT = "The lamp of the tower is blue."
OTHER = " ".join(f"Boat {n} lies in the harbour, waiting for the tide." for n in range(20))


def sample(visible: bool) -> Sample:
    context = f"{OTHER} {FACT} {OTHER}"
    start = context.index(FACT)
    return Sample(
        f"lamp-{visible}", "lamp", "lamp", context, "\n\nWhich colour does the lamp have?",
        ("blue",), " blue", visible, "any", 4, "data", 512, "report", 0, "Answer:",
        evidence=((start, start + len(FACT)),),
    )


@pytest.mark.parametrize("visible", [True, False])
def test_kept_positions_give_the_share_and_no_positions_none(visible: bool) -> None:
    engine = ReferenceEngine(ensure_model(), dtype="float32", device="cpu")
    methods = choose_methods(["quickmerge", "random", "mean-pool", "truncation"])
    cells = [(method, 0.25) for method in methods if method.name not in ("none", "plain")]
    cells += [(method, 0.0 if method.name == "none" else 1.0)
              for method in methods if method.name in ("none", "plain")]
    one = sample(visible)
    rows = {row.method: row for part in engine.evaluate(one, cells) for row in part}
    assert {row.status for row in rows.values()} == {OK}
    assert rows["plain"].evidence_kept == 1.0
    assert rows["truncation"].evidence_kept == 0.0  # it keeps both ends, the fact is between
    assert 0.0 <= rows["random"].evidence_kept < 1.0
    told = len(Prompt.of(one, engine.tokenizer).evidence)
    share = rows["quickmerge"].evidence_kept * told
    assert share == pytest.approx(round(share))
    assert math.isnan(rows["none"].evidence_kept)
    assert math.isnan(rows["mean-pool"].evidence_kept)
