"""Ways to make a prompt smaller, one file each, all behind one interface."""

from __future__ import annotations

from collections.abc import Iterable

from qm_vllm_eval.methods import (
    even,
    fp8,
    gemfilter,
    head_cover,
    kvpress,
    llmlingua,
    mean_pool,
    native,
    none,
    plain,
    prior,
    quickmerge,
    random,
    specprefill,
    truncation,
)
from qm_vllm_eval.methods.base import Budget, Method, Request, Unfit

_ALL: tuple[Method, ...] = (
    none.METHOD,
    plain.METHOD,
    *(quickmerge.method(name) for name in quickmerge.VARIANTS),
    prior.CORRECTED,
    prior.SURPRISING,
    *(native.method(name) for name in native.VARIANTS),
    head_cover.METHOD,
    fp8.PLAIN,
    fp8.MERGED,
    truncation.METHOD,
    random.METHOD,
    even.METHOD,
    mean_pool.METHOD,
    gemfilter.METHOD,
    specprefill.METHOD,
    *(kvpress.method(press) for press in kvpress.PRESSES),
    *(llmlingua.method(name) for name in llmlingua.NAMES),
)

METHODS: dict[str, Method] = {method.name: method for method in _ALL}
"""Every method by name, in the order of tables."""

ENDS = ("none", "plain")
"""The two methods that every comparison needs."""


class UnknownMethod(ValueError):
    """A method that does not exist; the message lists those that do."""


def choose_methods(names: Iterable[str]) -> list[Method]:
    """Methods by name, the two ends first, each once.

    Raises:
        UnknownMethod: with the list of what exists.
    """
    wanted = [*ENDS, *names]
    for name in wanted:
        if name not in METHODS:
            raise UnknownMethod(f"method {name!r} is unknown; known: {', '.join(METHODS)}")
    return [METHODS[name] for name in dict.fromkeys(wanted)]


__all__ = [
    "ENDS", "METHODS", "Budget", "Method", "Request", "Unfit", "UnknownMethod", "choose_methods",
]
