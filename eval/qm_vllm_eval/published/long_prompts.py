"""Tables of prompts beyond ``max_model_len`` (``scripts/long_prompts.py``)."""

from __future__ import annotations

from qm_vllm_eval.published.form import Row, figure, markdown
from qm_vllm_eval.published.stored import study

WAYS = {
    "plain": "vLLM, max_model_len as long as the prompt",
    "ours": "compressed, read as a whole",
    "parts": "compressed, read in parts",
    "cut": "vLLM, the text's middle left out",
}


def table(*names: str) -> str:
    """A model and way a line: facts found and mean F1 of answers, by length of the prompts."""
    lines: list[Row] = []
    lengths = sorted({row["length"] for name in names for row in study("long", name)["rows"]})
    for name in names:
        content = study("long", name)
        for way, said in WAYS.items():
            rows = [row for row in content["rows"] if row["way"] == way]
            if not rows:
                continue
            line: Row = {
                "model": content["model"],
                "max_model_len": f"{content['arguments']['max_model_len']:,}", "served by": said,
            }
            for length in lengths:
                own = [row for row in rows if row["length"] == length]
                line[f"facts at {length:,}"] = _found([r for r in own if r["kind"] == "needles"])
            for length in lengths:
                own = [r for r in rows if r["length"] == length and r["kind"] == "questions"]
                line[f"F1 at {length:,}"] = _mean(own)
            lines.append(line)
    return markdown(lines)


def said(*names: str) -> str:
    """Where the figures of files are from."""
    return "; ".join(map(_said, names))


def _said(name: str) -> str:
    content = study("long", name)
    ours = [row for row in content["rows"] if row["way"] in ("ours", "parts")]
    positions = " and ".join(sorted({row["positions"] for row in ours}))
    tokens, kept = (max(row[key] for row in ours) for key in ("tokens", "kept"))
    return (
        f"{content['model']}{_cache(ours)}, ratio {content['arguments']['ratio']}, prompts of up "
        f"to {tokens:,} tokens, {kept:,} kept, {positions} positions, {content['date'][:10]}, "
        f"commit {content['commit']['id'][:7]}"
    )


def _cache(rows: list[Row]) -> str:
    """In which cache prompts were read in parts, if they were."""
    blocks = sorted({row["blocks"] for row in rows if row.get("blocks")})
    sizes = " or ".join(map(str, blocks))
    return f" with a cache of {sizes} blocks of 128 tokens" if blocks else ""


def _found(rows: list[Row]) -> str:
    if rows and all(row["status"] == "refused" for row in rows):
        return "refused"
    return f"{sum(row['score'] for row in rows):.0f} of {len(rows)}" if rows else ""


def _mean(rows: list[Row]) -> str:
    if not rows:
        return ""
    return f"{figure(sum(row['score'] for row in rows) / len(rows))} (n={len(rows)})"
