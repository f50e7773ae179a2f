"""Parts of the dense pass that need no model: scores in calls of any size, rotation, attention."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from qm_vllm.compress import AttentionError, QueryAttention
from qm_vllm.engine.dense import runner as dense_runner
from qm_vllm.engine.dense.runner import DenseRunner
from qm_vllm.engine.dense.sdpa_attention import SdpaAttention
from qm_vllm.engine.dense.taps import LayerRecord
from tests.unit.test_rotary_table import SIZE, Rotary

HEADS, KV_HEADS, N, WINDOW = 6, 3, 90, 20


def attention(**more):
    return SimpleNamespace(
        num_heads=HEADS, num_kv_heads=KV_HEADS, head_size=SIZE,
        scale=SIZE**-0.5, **more,
    )


def runner(*rotaries) -> DenseRunner:
    layers = [SimpleNamespace(attn=attention(), rotary=rotary) for rotary in rotaries or (None,)]
    return DenseRunner(SimpleNamespace(layers=layers), torch.float32, torch.device("cpu"), 2048)


def record(window: int = WINDOW, seed: int = 0) -> LayerRecord:
    generator = torch.Generator().manual_seed(seed)
    found = LayerRecord()
    found.queries = 2 * torch.randn(window, HEADS, SIZE, generator=generator)
    found.rotated_keys, found.values = torch.randn(
        2, N, KV_HEADS, SIZE, generator=generator
    )
    return found


def weights(seen: LayerRecord) -> torch.Tensor:
    """Causal softmax [H, W, N], written out."""
    keys = seen.rotated_keys.repeat_interleave(HEADS // KV_HEADS, 1)
    logits = torch.einsum("whd,nhd->hwn", seen.queries, keys) * SIZE**-0.5
    first = N - len(seen.queries)
    future = torch.arange(N) > first + torch.arange(len(seen.queries))[:, None]
    return logits.masked_fill(future, -torch.inf).softmax(-1)


@pytest.mark.parametrize("bytes_at_once", [1, 2 * 4 * 2 * WINDOW * N, 1 << 30])
@pytest.mark.parametrize("window", [1, WINDOW, N])
def test_scores_and_errors_do_not_depend_on_how_many_heads_go_at_once(
    monkeypatch, bytes_at_once, window
):
    monkeypatch.setattr(dense_runner, "AT_ONCE", bytes_at_once)
    seen, order = record(window), torch.randperm(N, generator=torch.Generator().manual_seed(1))
    got, expected = runner().window_attention(0, seen), QueryAttention.of(weights(seen))
    for name in ("recent", "question", "energy"):
        torch.testing.assert_close(getattr(got, name), getattr(expected, name))
    error = runner().attention_error(0, seen, order, [5, 40])
    whole = AttentionError.of(weights(seen), seen.values.transpose(0, 1), order, [5, 40])
    torch.testing.assert_close(error.relative(), whole.relative())


class QueryOnly(Rotary):
    """Takes no key, as vLLM's rotary embedding may."""

    def forward_cpu(self, positions, query, key=None):
        cos, sin = self.get_buffer("cos_sin_cache")[positions].chunk(2, 1)
        low, high = query.view(len(query), -1, SIZE).chunk(2, 2)
        cos, sin = cos[:, None], sin[:, None]
        turned = torch.cat((low * cos - high * sin, high * cos + low * sin), 2)
        return turned.view(query.shape), key


def test_keys_are_rotated_by_their_own_layer():
    one, other = QueryOnly(), QueryOnly(mscale=0.7)
    layers = [one, other, one]
    kept = torch.tensor([0, 3, 4, 30, 63])
    for layer, rotary in enumerate(layers):
        plain = record(seed=layer).values
        before = plain.clone()
        got = runner(*layers).rotate(layer, plain[kept])
        expected, _ = rotary.forward_cpu(torch.arange(5), before[kept].flatten(1))
        assert torch.equal(got, expected.view(5, KV_HEADS, SIZE))
        assert torch.equal(plain, before)


def test_tables_of_angles_say_how_far_positions_reach():
    assert runner(Rotary(), Rotary(rows=48), None).reach == 48
    assert runner(None).reach is None


@pytest.mark.parametrize("given", [True, False])
def test_attention_fills_the_keys_and_values_that_the_caller_wants(given):
    seen = record()
    query = torch.randn(N, HEADS, SIZE)
    backend = SdpaAttention(attention(), torch.float32, torch.device("cpu"))
    keys, values = (torch.zeros(N, KV_HEADS, SIZE) for _ in range(2))
    backend.begin(N, None, *((keys, values) if given else ()))
    parts = [
        backend.attend(query[a:b], seen.rotated_keys[a:b], seen.values[a:b], a)
        for a, b in ((0, 40), (40, 70), (70, N))
    ]
    backend.begin(N)
    whole = backend.attend(query, seen.rotated_keys, seen.values, 0)
    torch.testing.assert_close(torch.cat(parts), whole)
    assert torch.equal(keys, seen.rotated_keys) is given
    assert torch.equal(values, seen.values) is given
