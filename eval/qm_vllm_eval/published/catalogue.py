"""Which maker answers to the first word of a name."""

from __future__ import annotations

import shlex
from collections.abc import Callable

from qm_vllm_eval.paper import compare
from qm_vllm_eval.published import (
    agents,
    claims,
    headline,
    heads,
    long_prompts,
    quality,
    ruler,
    runs,
    speed,
)
from qm_vllm_eval.published.form import Unknown
from qm_vllm_eval.published.stored import STUDIES

BLOCKS: dict[str, Callable[..., str]] = {
    "retention": quality.retention, "best": quality.best, "match": quality.match,
    "likelihoods": quality.likelihoods, "intervals": quality.intervals,
    "llmlingua": lambda: quality.by_task("smollm2-peers", ("llmlingua", "longllmlingua")),
    "heads": heads.table, "paired": runs.paired, "adaptive": runs.adaptive, "ego4d": runs.ego4d,
    "booksum": runs.booksum, "ruler": ruler.table, "ruler-tasks": ruler.by_task,
    "paper": lambda: compare.figures(STUDIES / "paper"), "claims": claims.table,
    "agents": agents.agents, "agents-said": agents.agents_said, "hints": agents.hints,
    "long": long_prompts.table, "long-said": long_prompts.said,
    "benchmarks": speed.tables, "prefill": headline.prefill, "shares": headline.shares,
    "entropy": headline.entropy, "noted": runs.noted_table,
}
VALUES: dict[str, Callable[..., str]] = {
    **{study: (lambda *words, study=study: quality.value(study, *words))
       for study in quality.FOLDERS},
    "ego4d": runs.ego4d_value, "paper": runs.paper_value, "file": runs.file_value,
    "bench": runs.bench_value, "phase": runs.phase_value, "times": runs.times_plain,
    "even": runs.even, "noted": runs.noted_value, "first": runs.first_value,
    "way": runs.way_value,
}


def block(name: str) -> str:
    """The table of a name."""
    return _made(BLOCKS, name)


def value(name: str) -> str:
    """The figure of a name."""
    return _made(VALUES, name)


def _made(makers: dict[str, Callable[..., str]], name: str) -> str:
    kind, *words = shlex.split(name)
    if kind not in makers:
        raise Unknown(f"no maker '{kind}'; there are {', '.join(sorted(makers))}")
    try:
        return makers[kind](*words)
    except TypeError as error:
        raise Unknown(f"'{name}': {error}") from None
