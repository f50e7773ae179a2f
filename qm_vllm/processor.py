"""What the processor computes in: bfloat16 without hardware for it is several times slower."""

from __future__ import annotations

import platform
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
FLAGS = frozenset({"amx_bf16", "avx512_bf16", "avx_ne_convert", "bf16"})
"""Names of instruction sets that multiply bfloat16, on x86 and ARM."""


def computes_bf16() -> bool:
    """Whether bfloat16 is a good choice here: a CUDA device, or a CPU that multiplies it.

    Where nothing is known of the CPU (no /proc/cpuinfo), only ARM's Macs are trusted with it.
    """
    import torch

    if torch.cuda.is_available():
        return True
    try:
        lines = CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.machine() == "arm64"
    words = {
        word for line in lines if line.lower().startswith(("flags", "features"))
        for word in line.split(":", 1)[-1].split()
    }
    return bool(words & FLAGS)


def best_dtype() -> str:
    """"bfloat16" where it is fast, else "float32"."""
    return "bfloat16" if computes_bf16() else "float32"
