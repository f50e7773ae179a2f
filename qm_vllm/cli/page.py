"""The page of ``qm-vllm inspect``: tokens coloured by saliency, as one self-contained file."""

from __future__ import annotations

import html
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from qm_vllm.cli.page_style import STYLE

STEPS = 10
"""Shades of saliency."""
LABELS = {
    "kept": "kept: an anchor, in the KV cache",
    "merged": "merged: its state is part of its group's anchor",
    "dropped": "dropped: nothing of it is left",
}


def build_page(data: Mapping[str, Any]) -> str:
    """HTML of the inspection of one prompt; nothing in it refers to another file.

    Args:
        data: ``tokens`` (texts; None: the token is the rest of the text before), ``kept`` (bools),
            ``scores`` (0 to 1), ``groups`` (index of the kept token, counted among the kept, that
            a token joined; -1: none), ``protected`` (bools), all of one length; ``report`` (the
            request's report); ``title`` (optional).

    Raises:
        ValueError: the lists differ in length.
    """
    count = len(data["tokens"])
    for name in ("kept", "scores", "groups", "protected"):
        if len(data[name]) != count:
            raise ValueError(f"{name} has {len(data[name])} entries for {count} tokens")
    title = html.escape(str(data.get("title") or "Inspected prompt"))
    states = token_states(data["kept"], data["groups"])
    begins = [i for i, text in enumerate(data["tokens"]) if text is not None or i == 0]
    body = "".join(
        _cell(data, states, range(begin, end))
        for begin, end in pairwise([*begins, count])
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<header><h1>{title}</h1>\n{_figures(data, states)}\n{_legend(states)}</header>\n"
        '<input type="checkbox" id="only"><label for="only">Show kept tokens only</label>\n'
        f'<main class="prompt">{body}</main>\n</body>\n</html>\n'
    )


def token_states(kept: list[bool], groups: list[int]) -> list[str]:
    """"kept", "merged" or "dropped" for each token."""
    return [
        "kept" if keep else "merged" if group >= 0 else "dropped"
        for keep, group in zip(kept, groups, strict=True)
    ]


def shade(score: float) -> int:
    """Shade of a score from 0 to :data:`STEPS`; values outside 0..1 count as the nearest."""
    return round(min(max(score, 0.0), 1.0) * STEPS)


def visible(token: str) -> str:
    """Escaped text of a token; line ends get a sign, so that a token of only them is seen."""
    text = html.escape(token.replace("\r\n", "\n").replace("\r", "\n"))
    return text.replace("\n", "<i>⏎</i>\n")


def _cell(data: Mapping[str, Any], states: list[str], tokens: range) -> str:
    """One text and the tokens that it consists of: shown as the one of which most is left."""
    hints = []
    for index in tokens:
        group, score = data["groups"][index], data["scores"][index]
        place = f"group {group}" if group >= 0 else "no group"
        hint = f"token {index} · score {score:.3f} · {place} · {states[index]}"
        hints.append(hint + (" · protected" if data["protected"][index] else ""))
    state = min((states[index] for index in tokens), key=list(LABELS).index)
    classes = f"{state[0]} h{shade(max(data['scores'][index] for index in tokens))}"
    if any(data["protected"][index] for index in tokens):
        classes += " p"
    text = visible(data["tokens"][tokens[0]] or "")
    return f'<span class="{classes}" title="{"; ".join(hints)}">{text}</span>'


def _figures(data: Mapping[str, Any], states: list[str]) -> str:
    report = data["report"]
    total = len(states)
    kept = states.count("kept")
    rows: list[tuple[str, str]] = [
        ("Tokens", f"{total:,}"),
        ("Kept", f"{kept:,} ({kept / total:.0%})" if total else "0"),
        ("Protected", f"{sum(map(bool, data['protected'])):,}"),
    ]
    if report.get("kv_blocks") is not None:
        size = report.get("block_size")
        each = f" × {size} tokens" if size else ""
        rows.append(("KV blocks", f"{report['kv_blocks']:,}{each}"))
    if report.get("kv_bytes") is not None:
        rows.append(("KV cache", f"{report['kv_bytes'] / 2**20:.2f} MiB"))
    if report.get("saliency"):
        rows.append(("Saliency", str(report["saliency"])))
    if report.get("encoder_layers") is not None:
        rows.append(("Encoder", f"{report['encoder_layers']} of {report.get('num_layers')} layers"))
    if report.get("gamma") is not None:
        rows.append(("Gamma", f"{report['gamma']:.3f}"))
    if report.get("reconstruction_error") is not None:
        rows.append(("Reconstruction error", f"{report['reconstruction_error']:.3f}"))
    items = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>"
        for name, value in rows
    )
    return f"<dl>{items}</dl>"


def _legend(states: list[str]) -> str:
    samples = "".join(
        f'<li><span class="{state[0]} h5">token</span> {html.escape(label)} '
        f"({states.count(state):,})</li>"
        for state, label in LABELS.items()
    )
    ramp = "".join(f'<span class="h{step}">&nbsp;</span>' for step in range(STEPS + 1))
    return (
        f'<ul class="legend">{samples}<li><span class="k p h5">token</span> protected: '
        "kept whatever its score</li>"
        f'<li>saliency: low <span class="ramp" aria-hidden="true">{ramp}</span> high</li></ul>'
    )
