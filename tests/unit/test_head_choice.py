"""What each KV head keeps for itself, against one head at a time in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qm_vllm.compress import choose_for_heads, scores_of_heads
from qm_vllm.compress.normalize import shared_rank
from qm_vllm.compress.query_attention import AGE, RECENT
from qm_vllm.compress.saliency.query import BACKWARD, FORWARD, SHARES, reach

N, WINDOW, HEADS, KV_HEADS, WIDTH, ENDS = 200, 64, 6, 2, 16, (4, 32)


def drawn(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    make = torch.Generator().manual_seed(seed)
    return (
        2 * torch.randn(WINDOW, HEADS, WIDTH, generator=make),
        torch.randn(N, KV_HEADS, WIDTH, generator=make),
        torch.randn(N, KV_HEADS, WIDTH, generator=make),
    )


def one_head(queries, keys, values, scale, cap) -> torch.Tensor:
    """The score of one KV head: its queries [W, E, D], keys and values [N, D]."""
    count = len(queries)
    logits = torch.einsum("wed,nd->ewn", queries.double(), keys.double()) * scale
    logits = torch.tanh(logits / cap) * cap if cap else logits
    seen = torch.arange(N) <= torch.arange(N - count, N)[:, None]
    weights = logits.masked_fill(~seen, -torch.inf).softmax(-1)
    recent = weights[:, -RECENT:].mean(1)
    age = torch.exp(-torch.arange(count - 1, -1, -1).double() / AGE)[:, None]
    views = torch.stack((
        recent.amax(0), (weights * age).amax((0, 1)), recent.square().sum(0).sqrt(),
    )) * values.double().norm(dim=-1)
    views[:, : ENDS[0]] = views[:, -ENDS[1] :] = 0
    return shared_rank([
        (reach(view, forward, BACKWARD), share)
        for view, forward, share in zip(views, FORWARD, SHARES, strict=True)
    ])


@pytest.mark.parametrize("cap", [0.0, 3.0])
@pytest.mark.parametrize("at_once", [1, 40_000, 1 << 30])
@pytest.mark.parametrize("seed", range(4))
def test_heads_rank_tokens_as_each_alone(seed, at_once, cap):
    queries, keys, values = drawn(seed)
    scores = scores_of_heads(queries, keys, values, 0.25, at_once, cap, ENDS)
    assert scores.shape == (KV_HEADS, N)
    each = HEADS // KV_HEADS
    for head in range(KV_HEADS):
        want = one_head(
            queries[:, head * each : (head + 1) * each], keys[:, head], values[:, head], 0.25, cap
        )
        inside = slice(ENDS[0], N - ENDS[1])
        mine, theirs = scores[head, inside].argsort(), want[inside].argsort()
        # Tokens that rank alike, or alike but for rounding, may change places.
        assert (want[inside][mine] - want[inside][theirs]).abs().max() < 0.03
        best = set(mine[-40:].tolist()) ^ set(theirs[-40:].tolist())
        assert len(best) <= 2


@given(
    data=st.data(), kv_heads=st.integers(1, 4), count=st.integers(1, 40), seed=st.integers(0, 99)
)
def test_each_head_keeps_the_shared_and_its_best(data, kv_heads, count, seed):
    scores = torch.rand(kv_heads, count, generator=torch.Generator().manual_seed(seed))
    shared = data.draw(st.lists(st.integers(0, count - 1), unique=True, max_size=count))
    k = data.draw(st.integers(max(1, len(shared)), count))
    kept = choose_for_heads(scores, torch.tensor(shared, dtype=torch.long), k)
    assert kept.shape == (kv_heads, k)
    for head, score in zip(kept.tolist(), scores.tolist(), strict=True):
        assert head == sorted(set(head))
        assert set(shared) <= set(head)
        own, left = set(head) - set(shared), set(range(count)) - set(head)
        assert not own or not left or min(score[i] for i in own) >= max(score[i] for i in left)


@pytest.mark.parametrize(("shared", "k"), [(3, 2), (0, 11)])
def test_an_impossible_number_is_refused(shared, k):
    with pytest.raises(ValueError, match=f"k={k}"):
        choose_for_heads(torch.rand(2, 10), torch.arange(shared), k)
