"""All checks of the paper's claims on real states: ``claims.json``.

``python -m qm_vllm_eval.paper.claims.run --out eval/results/paper`` (some minutes on one core;
needs the packages' encoders, SmolLM2, the novels and the test videos).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qm_vllm.compress import Compressed, compress
from qm_vllm.config import QuickMergeConfig
from qm_vllm.encoders import load_encoder
from qm_vllm_eval.paper.claims import (
    bounds,
    budget,
    complexity,
    lipschitz,
    merge_risk,
    ned,
    prior_loss,
    saliency,
    stability,
    states,
    tables,
)
from qm_vllm_eval.paper.claims.attention import COSINE, LETTER
from qm_vllm_eval.study.meta import describe_run, now

SEED = 0
TOKENS = 128
WINDOWS = 16
SCALES = {"cosine": COSINE, "letter": LETTER}
RATIOS = (1.5, 2.4, 4.0)
LENGTHS = (64, 128, 256, 512)
_EFFECT_WINDOWS = 4  # dropping each token in turn runs a layer N times


def run_claims(out: Path) -> Path:
    """Check every claim and write ``out/claims.json``.

    Args:
        out: folder, made if it is not there.

    Returns:
        The file.

    Raises:
        UserError: a model, a text or a video is not on this machine.
    """
    torch.manual_seed(SEED)
    entry = describe_run(
        {"tokens": TOKENS, "windows": WINDOWS, "scale": COSINE, "threads": torch.get_num_threads()},
        methods={}, seeds={"seed": SEED},
    )
    encoder = load_encoder("minilm")
    texts = states.passages(WINDOWS, TOKENS)
    models = [
        states.minilm(encoder, texts, TOKENS),
        states.dinov2(WINDOWS // 2),
        states.smollm2(texts[: WINDOWS // 2], TOKENS),
    ]
    found: dict[str, Any] = {
        "tables": tables.check_tables(),
        "complexity": {
            f"N={count}": complexity.count_flops(count, math.ceil(count / 2.4))
            for count in (128, 1024, 4096)
        } | {"time": complexity.time_growth()},
        "isotropic": {
            f"cosine x {scale:g}": ned.check_lemma(
                [ned.isotropic(TOKENS, 64, seed) for seed in range(8)], scale
            )
            for scale in (1.0, 4.0, COSINE)
        },
        "budget": _budgets(encoder),
    }
    for model in models:
        found[model.name] = dict(_model_checks(model))
    entry["encoders"] = {
        model.name: {
            "windows": len(model.windows), "layers": model.depth,
            "tokens": sorted({len(window[0]) for window in model.windows}),
            "width": model.windows[0][0].shape[1],
        }
        for model in models
    }
    entry["ended"] = now()
    out.mkdir(parents=True, exist_ok=True)
    file = out / "claims.json"
    content = {"run": entry, "claims": _plain(found)}
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return file


@torch.no_grad()
def _model_checks(model: states.RealStates) -> Iterator[tuple[str, Any]]:
    """Name and figures of every check on one model's states."""
    inputs = [window[:-1] for window in model.windows]
    layers = [rows for window in inputs for rows in window]
    middle = [window[model.middle] for window in inputs]
    few = middle[:_EFFECT_WINDOWS]
    next_layer = model.layer(model.middle)
    effects = [(rows, merge_risk.leave_one_out(next_layer, rows)) for rows in few]
    for name, scale in SCALES.items():
        yield f"lemma, {name}", ned.check_lemma(layers, scale)
        yield f"stability, {name}", stability.check_stability(inputs, scale)
        own = [merge_risk.contribution(rows, scale) for rows in few]
        for kind, changes in (("own output", own), ("next layer", [c for _, c in effects])):
            for limit in merge_risk.THRESHOLDS:
                figures = merge_risk.check_risk(few, changes, limit, scale)
                yield f"merge risk, {name}, {kind}, {limit:g}", figures
    yield "lemma near uniform, cosine x 1", ned.check_lemma(layers, 1.0)
    yield "sign", saliency.check_sign(inputs, effects)
    yield "norm", saliency.check_norm(effects, _surprisals(model))
    scores = [1 - saliency.formula(window) for window in inputs]
    yield "gumbel", saliency.check_gumbel(scores, seed=SEED)
    yield "order", budget.check_order(middle)
    inner = [rows[1:] for rows in middle]  # without the class token or the attention sink
    for part, rows in (("", middle), (", first token left out", inner)):
        yield f"first line{part}", bounds.check_first_line(rows, seed=SEED)
        for ratio in RATIOS:
            yield f"gamma, N/K = {ratio:g}{part}", bounds.check_gamma(rows, ratio)
    yield "lipschitz", lipschitz.check_lipschitz(
        model.upper(model.middle), middle, ratios=RATIOS, seed=SEED
    )
    yield "repeatable", _repeatable(middle)
    with torch.enable_grad():
        config = QuickMergeConfig(ratio=1 / 2.4, saliency="entropy")
        yield "prior loss", prior_loss.check_prior_loss(_merged(middle[0], config), SEED)


def _surprisals(model: states.RealStates) -> list[tuple[Tensor, Tensor]]:
    """Middle states and surprisal of the tokens after the first."""
    rows = [window[model.middle][1:] for window in model.windows]
    return list(zip(rows, model.surprisals, strict=bool(model.surprisals)))


def _repeatable(windows: list[Tensor]) -> dict[str, bool]:
    """Inference twice on the same states: bit for bit?"""
    config = QuickMergeConfig(ratio=1 / 2.4, saliency="entropy")
    same = [torch.equal(_merged(x, config), _merged(x, config)) for x in windows]
    return {"holds": all(same)}


def _merged(rows: Tensor, config: QuickMergeConfig) -> Tensor:
    found = compress(rows, config)
    assert isinstance(found, Compressed)
    return found.states


def _budgets(encoder: Any) -> dict[str, Any]:
    """K / N at alpha by complexity and by length, on MiniLM."""
    sources = {
        "one sentence, repeated": states.repeated_sentence(WINDOWS, TOKENS),
        "prose": states.passages(WINDOWS, TOKENS),
        "words in random order": states.random_words(WINDOWS, TOKENS, SEED),
    }
    complex_ = {
        name: [window[:-1] for window in states.minilm(encoder, texts, TOKENS).windows]
        for name, texts in sources.items()
    }
    long = {
        str(count): [
            window[:-1]
            for window in states.minilm(encoder, states.passages(WINDOWS, count), count).windows
        ]
        for count in LENGTHS
    }
    return {
        f"by {what}, {name}": budget.check_budget(windows, scale=scale)
        for what, windows in (("complexity", complex_), ("length", long))
        for name, scale in SCALES.items()
    }


def _plain(value: Any) -> Any:
    """For JSON: dataclasses as dicts, floats to six digits, infinities and NaN as text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: _plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else str(value)
    return value


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("eval/results/paper"))
    print(run_claims(parser.parse_args().out))


if __name__ == "__main__":
    main()
