"""Which number format a processor is given."""

from __future__ import annotations

import pytest

from qm_vllm import processor


@pytest.mark.parametrize(("text", "expected"), [
    ("flags\t\t: fpu avx2 fma avx512_bf16\n", "bfloat16"),
    ("model name : X\nflags : fpu avx2 amx_bf16 amx_tile\n", "bfloat16"),
    ("Features\t: fp asimd bf16 i8mm\n", "bfloat16"),
    ("flags : fpu avx2 fma avx512f\nbugs : bf16\n", "float32"),
    ("", "float32"),
])
def test_dtype_follows_the_flags(text, expected, tmp_path, monkeypatch):
    file = tmp_path / "cpuinfo"
    file.write_text(text)
    monkeypatch.setattr(processor, "CPU_INFO", file)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert processor.best_dtype() == expected


def test_a_cuda_device_takes_bfloat16(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert processor.best_dtype() == "bfloat16"


@pytest.mark.parametrize(("machine", "expected"), [("arm64", True), ("x86_64", False)])
def test_without_a_file_only_arm_is_trusted(machine, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(processor, "CPU_INFO", tmp_path / "none")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert processor.computes_bf16() is expected
