"""LLMLingua and LongLLMLingua, run by their own package in an environment of their own."""

from __future__ import annotations

from qm_vllm_eval.methods.base import Method

WORKER = "llmlingua"
NAMES = ("llmlingua", "longllmlingua")


def method(name: str) -> Method:
    """One of the two as a method of the bench. The text that they return is prefilled."""
    return Method(
        name, f"{name}: perplexity by the same model", peer=WORKER,
        needs_question=name == "longllmlingua",
    )
