"""The Triton kernel against float64; on a machine without CUDA in Triton's interpreter.

Triton asks for the interpreter when it is imported, so there this file runs itself in a process of
its own.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

CUDA = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if CUDA else "cpu"
needs_triton = pytest.mark.skipif(not (CUDA or INTERPRETED), reason="runs in the interpreter")
# The interpreter computes bfloat16 products wrongly, so that there float32 has to do.
DTYPES = [torch.float32, torch.bfloat16, torch.float16] if CUDA else [torch.float32]
SCALE = 24.0


@pytest.fixture(scope="module")
def kernel():
    from qm_vllm.compress import entropy_triton

    with pytest.MonkeyPatch.context() as patch:
        if not CUDA:  # several tiles and bands from few rows: the interpreter is slow
            patch.setattr(entropy_triton, "BLOCK", 16)
            patch.setattr(entropy_triton, "DEPTH", 16)
            patch.setattr(entropy_triton, "BAND", 3)
        yield entropy_triton


def truth(states, weights):
    """Sums over j != i of e_ij w_j and of e_ij d_ij w_j in float64."""
    x = states.double()
    norm = x.norm(dim=1, keepdim=True)
    unit = torch.where(norm > 0, x / norm.where(norm > 0, 1.0), 0.0)
    d = SCALE * (unit @ unit.T - 1)
    e = d.exp().fill_diagonal_(0)
    return e @ weights.double(), (e * d) @ weights.double()


def close(got, exact, exact_to=1e-5):
    """A cosine's rounding times the scale, 24 x 1e-7, is the relative error of each e_ij.

    The 16-bit units of a GPU do not add up in full float32.
    """
    room = exact_to * (exact[0] + exact[1].abs()) + 1e-12
    for mine, wanted in zip(got, exact, strict=True):
        assert bool(((mine - wanted).abs() <= room).all())


def states_of(count, width, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    # Rows with a part in common: cosines from 0 to 1, so that all sums matter.
    common = torch.randn(width, generator=generator)
    mix = torch.rand(count, 1, generator=generator)
    size = 10 ** torch.empty(count, 1).uniform_(-3, 3, generator=generator)
    x = (mix * common + (1 - mix) * torch.randn(count, width, generator=generator)) * size
    return x.to(DEVICE, dtype)


@pytest.mark.skipif(CUDA or INTERPRETED, reason="the tests below run in this process")
def test_in_the_interpreter():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__],
        env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "5 passed" in done.stdout


@needs_triton
@settings(max_examples=100 if CUDA else 8, deadline=None)
@given(
    count=st.integers(1, 700 if CUDA else 60), width=st.integers(1, 300 if CUDA else 40),
    seed=st.integers(0, 1000), dtype=st.sampled_from(DTYPES),
)
def test_equals_float64_for_any_shape(kernel, count, width, seed, dtype):
    states = states_of(count, width, seed, dtype)
    weights = torch.rand(count, generator=torch.Generator().manual_seed(seed)).to(DEVICE)
    rows, inverse = kernel.scaled_rows(states)
    got = kernel.off_diagonal_sums(rows, inverse, weights, SCALE)
    halves = CUDA and dtype != torch.float32
    close(got, truth(states, weights), 1e-4 if halves else 1e-5)


@needs_triton
def test_rows_of_zeros_and_of_huge_and_tiny_values(kernel):
    states = states_of(50, 20, 3)
    states[7] = 0
    states[8] *= 1e30
    states[9] *= 1e-35
    states[10] = torch.finfo(torch.float32).max
    rows, inverse = kernel.scaled_rows(states)
    assert inverse[7] == 0
    assert torch.isfinite(rows).all()
    ones = torch.ones(50, device=DEVICE)
    close(kernel.off_diagonal_sums(rows, inverse, ones, SCALE), truth(states, ones))


@needs_triton
def test_strided_rows_are_read_where_they_are(kernel):
    wide = states_of(40, 64, 5)
    view = wide[:, 16:48]
    one, other = kernel.scaled_rows(view), kernel.scaled_rows(view.contiguous())
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@needs_triton
def test_equal_calls_give_equal_bits(kernel):
    rows, inverse = kernel.scaled_rows(states_of(60, 33, 6))
    ones = torch.ones(60, device=DEVICE)
    first, second = (kernel.off_diagonal_sums(rows, inverse, ones, SCALE) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@needs_triton
def test_fake_kernels_have_the_shapes_of_the_real_ones(kernel):
    states = states_of(30, 12, 7)
    torch.library.opcheck(torch.ops.qm_vllm.scaled_rows, (states,))
    rows, inverse = kernel.scaled_rows(states)
    arguments = (rows, inverse, torch.ones(30, device=DEVICE), SCALE)
    torch.library.opcheck(torch.ops.qm_vllm.off_diagonal_sums, arguments)


@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_entropy_on_cuda_uses_it_and_equals_a_cpu(kernel, dtype, monkeypatch):
    from qm_vllm.compress.entropy import attention_entropy

    calls = []
    original = kernel.off_diagonal_sums
    monkeypatch.setattr(
        kernel, "off_diagonal_sums", lambda *given: calls.append(1) or original(*given)
    )
    states = states_of(1500, 576, 8, dtype)
    got = attention_entropy(states, SCALE, incoming=True)
    want = attention_entropy(states.cpu().float(), SCALE, incoming=True)
    assert len(calls) == 3
    for mine, exact in zip(got, want, strict=True):
        torch.testing.assert_close(mine.cpu(), exact, rtol=1e-4, atol=1e-5)
