"""Evaluations over many rows: vLLM replicas under Ray, a journal, the tables of a run.

Importing this package, or anything in it but :mod:`~qm_vllm_eval.ray.cluster`,
:mod:`~qm_vllm_eval.ray.actors` and :mod:`~qm_vllm_eval.ray.stock`, needs no Ray. docs/scaling.md
says how the parts work together.
"""

from __future__ import annotations
