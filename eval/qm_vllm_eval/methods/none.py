"""No context at all: the lower end of every comparison."""

from __future__ import annotations

from qm_vllm_eval.methods.base import Budget, Method

METHOD = Method(
    "none", "the same prompt with an empty context", budget=Budget.NONE
)
