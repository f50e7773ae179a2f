"""Attention entropy against eq. 1-2 in float64."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qm_vllm.compress import attention_entropy, attention_entropy_lse
from tests.unit import helpers


def sample(kind: str, n: int, d: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator)
    if kind == "cone":
        return 0.2 * x + torch.randn(d, generator=generator)
    if kind == "duplicates":
        return x[torch.randint(0, max(1, n // 3), (n,), generator=generator)]
    if kind == "zeros":
        x[::3] = 0
    if kind == "huge":
        x[::5] *= 1e30
        x[1::5] *= 1e-30
    return x


KINDS = ("random", "cone", "duplicates", "zeros", "huge")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("n", "d", "scale", "tile"),
    [(1, 8, 24, 512), (2, 1, 24, 1), (65, 64, 24, 64), (300, 576, 24, 128), (700, 64, 32, 512),
     (64, 4096, 32, 50), (200, 32, 0.01, 64), (200, 32, 100.0, 64), (50, 16, 1e4, 512),
     (129, 16, 8, 1000)],
)
def test_entropy_equals_float64_reference(kind, n, d, scale, tile):
    x = sample(kind, n, d)
    expected, expected_in = helpers.reference_entropy(x, scale)
    helpers.assert_close(attention_entropy(x, scale, tile=tile), expected)
    outgoing, incoming = attention_entropy(x, scale, tile=tile, incoming=True)
    helpers.assert_close(outgoing, expected)
    assert torch.allclose(incoming.double(), expected_in, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("noise", [0.3, 0.6, 1.0])
@pytest.mark.parametrize(("d", "scale"), [(64, 24), (256, 24), (576, 32), (4096, 24)])
def test_rows_with_one_close_neighbour(d, scale, noise):
    """The hard case: one cosine carries the whole entropy, nothing averages its rounding."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(512, d, generator=generator).repeat_interleave(2, 0)
    x += noise * torch.randn(1024, d, generator=generator)
    expected, _ = helpers.reference_entropy(x, scale)
    sure = expected > 1e-9  # below, the reference itself is not good to 1e-5
    helpers.assert_close(attention_entropy(x, scale)[sure], expected[sure])


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 60), d=st.integers(1, 40), tile=st.integers(1, 70),
    scale=st.floats(0.01, 60), kind=st.sampled_from(KINDS), seed=st.integers(0, 99),
)
def test_entropy_for_any_shape_and_tile(n, d, tile, scale, kind, seed):
    x = sample(kind, n, d, seed)
    expected, _ = helpers.reference_entropy(x, scale)
    helpers.assert_close(attention_entropy(x, scale, tile=tile), expected)


@pytest.mark.parametrize("kind", ["random", "cone", "duplicates", "zeros"])
@pytest.mark.parametrize(("n", "d", "tile"), [(1, 4, 512), (90, 16, 32), (90, 300, 512)])
@pytest.mark.parametrize("size", [0.1, 1.0, 8.0])
def test_raw_entropy_equals_eq_1_to_the_letter(kind, n, d, tile, size):
    x = size * sample(kind, n, d)
    expected, expected_in = helpers.reference_raw_entropy(x)
    outgoing, incoming = attention_entropy(
        x, 1.0, normalize_rows=False, tile=tile, incoming=True
    )
    helpers.assert_close(outgoing, expected)
    assert torch.allclose(incoming.double(), expected_in, rtol=1e-5, atol=1e-6)
    assert torch.equal(outgoing, attention_entropy(x, 1.0, normalize_rows=False, tile=tile))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_are_exact_for_their_rounded_input(dtype):
    x = sample("cone", 100, 64).to(dtype)
    helpers.assert_close(attention_entropy(x, 24.0), helpers.reference_entropy(x, 24.0)[0])


def test_entropy_ignores_the_length_of_rows():
    x = helpers.states(80)
    scaled = x * torch.logspace(-3, 3, 80)[:, None]
    assert torch.allclose(attention_entropy(x, 24.0), attention_entropy(scaled, 24.0), rtol=1e-4)


def test_entropy_bounds_and_equal_tokens():
    equal = attention_entropy(torch.ones(50, 8), 24.0)
    assert torch.allclose(equal, torch.full((50,), math.log(50)))
    assert attention_entropy(torch.randn(1, 8), 24.0).tolist() == [0.0]
    assert attention_entropy(torch.zeros(4, 8), 24.0).allclose(torch.tensor(math.log(4)))


def test_entropy_is_bit_identical_twice_and_leaves_its_input():
    x = helpers.states(300, 64)
    before = x.clone()
    assert torch.equal(attention_entropy(x, 24.0), attention_entropy(x, 24.0))
    assert torch.equal(x, before)


def test_entropy_does_not_follow_a_lowered_matmul_precision():
    x = sample("cone", 200, 64)
    expected = attention_entropy(x, 24.0)
    torch.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(attention_entropy(x, 24.0), expected)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("d", [1, 7, 64, 256])
@pytest.mark.parametrize("n", [1, 33, 300])
def test_flash_form_equals_reference(n, d):
    x = sample("cone", n, d)
    expected, _ = helpers.reference_entropy(x, 24.0)
    assert torch.allclose(attention_entropy_lse(x, 24.0).double(), expected, atol=2.5e-5, rtol=0)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: attention_entropy(torch.ones(3), 24.0), "[N, D]"),
        (lambda: attention_entropy(torch.ones(0, 4), 24.0), "N, D >= 1"),
        (lambda: attention_entropy(torch.ones(3, 4, dtype=torch.long), 24.0), "floating"),
        (lambda: attention_entropy(torch.ones(3, 4), 0.0), "logit_scale=0.0"),
        (lambda: attention_entropy(torch.ones(3, 4), math.nan), "logit_scale=nan"),
        (lambda: attention_entropy(torch.ones(3, 4), 24.0, tile=0), "tile=0"),
        (lambda: attention_entropy_lse(torch.ones(3, 300), 24.0), "width 300"),
        (lambda: attention_entropy_lse(torch.ones(3, 4), -1.0), "logit_scale=-1.0"),
        (lambda: attention_entropy_lse(torch.ones(3, 4, device="meta"), 1.0), "meta"),
    ],
)
def test_impossible_arguments_are_named(call, words):
    with pytest.raises(ValueError, match=words.replace("[", r"\[")):
        call()


MEMORY = """
import resource, torch
torch.set_num_threads(1)
from qm_vllm.compress import attention_entropy
x = torch.randn(32768, 576, generator=torch.Generator().manual_seed(0))
attention_entropy(x[:1024], 24.0)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
attention_entropy(x, 24.0)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
def test_entropy_of_32768_tokens_needs_less_than_a_gibibyte():
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True, timeout=300
    )
    assert float(done.stdout) < 1024


@pytest.mark.parametrize("massive", [False, True])
@pytest.mark.parametrize("width", [64, 576])
def test_bf16_states_on_a_cpu_lose_nothing(width, massive):
    """Against float64 on the same bf16 values, with twins, a blank row and massive entries."""
    generator = torch.Generator().manual_seed(width)
    states = torch.randn(900, width, generator=generator)
    states += 0.7 * torch.randn(width, generator=generator)
    if massive:
        states[:, 3] *= 300
        states[0, 7] = 2e4
    states[5], states[9] = states[6], 0.0
    states = states.bfloat16()
    rows = states.double()
    unit = rows / rows.norm(dim=1, keepdim=True).where(rows.any(1, keepdim=True), 1.0)
    log_weights = (24.0 * unit @ unit.T).log_softmax(1)
    want = -(log_weights.exp() * log_weights).sum(1)
    got = attention_entropy(states, 24.0).double()
    assert float(((got - want) / want).abs().max()) <= 1e-5
