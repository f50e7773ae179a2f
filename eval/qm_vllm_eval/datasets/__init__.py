"""Data sets of long inputs: book chapters to summarise, videos to find a moment in.

Each loader gives one row after the other; a row that cannot be used carries the reason, so that
a run over many rows goes on. docs/datasets.md says which formats are read and where data come
from.
"""

from __future__ import annotations

from qm_vllm_eval.datasets.rows import DataRow, DataSetError

__all__ = ["DataRow", "DataSetError"]
