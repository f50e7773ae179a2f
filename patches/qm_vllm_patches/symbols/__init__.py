"""Every name of vLLM that this project uses, with the file of this package that uses it.

A test walks the syntax trees: a name that is imported, or an attribute that is read from one of
the classes below, and is not listed here fails it, and so does a listed one that nobody uses.
:mod:`qm_vllm_patches.checks` looks up what an engine needs when it starts: imports, the attributes
of the classes among them, hooks and calls. What models and layers are made of is looked at when
one is loaded.

A vLLM that names something otherwise is served by a branch in the file that uses it; what differs
between versions is nobody else's business.
"""

from __future__ import annotations

from qm_vllm_patches.symbols.attributes import ATTRIBUTES
from qm_vllm_patches.symbols.calls import CALLS, HOOKS
from qm_vllm_patches.symbols.imports import CONNECTOR, ELSEWHERE, IMPORTS, OPTIONAL

__all__ = [
    "ATTRIBUTES", "BELOW_VERSION", "CALLS", "CONNECTOR", "ELSEWHERE", "HOOKS", "IMPORTS",
    "MIN_VERSION", "OPTIONAL",
]

MIN_VERSION, BELOW_VERSION = (0, 31), (0, 34)
