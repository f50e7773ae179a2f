"""What each KV head keeps for itself, against one head at a time in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qm_vllm.compress import choose_for_heads, scores_of_heads

N, WINDOW, HEADS, KV_HEADS, WIDTH = 200, 32, 6, 2, 16


def one_head(queries, keys, values, scale, cap) -> torch.Tensor:
    """The score of one KV head: its queries [W, E, D], keys and values [N, D]."""
    logits = torch.einsum("wed,nd->ewn", queries.double(), keys.double()) * scale
    logits = torch.tanh(logits / cap) * cap if cap else logits
    return logits.softmax(-1).mean(1).sum(0) * values.double().norm(dim=-1)


@pytest.mark.parametrize("cap", [0.0, 3.0])
@pytest.mark.parametrize("at_once", [1, 40_000, 1 << 30])
@pytest.mark.parametrize("seed", range(4))
def test_heads_score_tokens_as_each_alone(seed, at_once, cap):
    make = torch.Generator().manual_seed(seed)
    queries = 2 * torch.randn(WINDOW, HEADS, WIDTH, generator=make)
    keys, values = (torch.randn(N, KV_HEADS, WIDTH, generator=make) for _ in range(2))
    scores = scores_of_heads(queries, keys, values, 0.25, at_once, cap)
    assert scores.shape == (KV_HEADS, N)
    each = HEADS // KV_HEADS
    for head, score in enumerate(scores):
        own = queries[:, head * each : (head + 1) * each]
        want = one_head(own, keys[:, head], values[:, head], 0.25, cap)
        torch.testing.assert_close(score.double(), want, rtol=1e-4, atol=1e-7)


@st.composite
def choices(draw):
    heads, count = draw(st.integers(1, 4)), draw(st.integers(1, 40))
    protected = draw(st.integers(0, count))
    k = draw(st.integers(max(1, protected), count))
    order = draw(st.permutations(range(count)))
    shares = draw(st.lists(st.floats(0, 1), min_size=heads, max_size=heads))
    seed = draw(st.integers(0, 99))
    scores = torch.rand(heads, count, generator=torch.Generator().manual_seed(seed))
    return scores, torch.tensor(order), protected, k, torch.tensor(shares)


@given(choices())
def test_heads_keep_the_protected_and_the_best_of_two_orders(made):
    scores, order, protected, k, shares = made
    kept = choose_for_heads(*made)
    assert kept.shape == (len(scores), k)
    first, free = order[:protected].tolist(), order[protected:].tolist()
    for head, score, share in zip(kept.tolist(), scores.tolist(), shares.tolist(), strict=True):
        assert head == sorted(set(head))
        assert set(first) <= set(head)
        own = sorted(free, key=lambda i, score=score: -score[i])
        share = min(max(share, 1e-6), 1 - 1e-6)
        place = {
            i: min(own.index(i) / share, free.index(i) / (1 - share)) for i in free
        }
        mine = [place[i] for i in set(head) - set(first)]
        left = [place[i] for i in set(free) - set(head)]
        assert not mine or not left or max(mine) <= min(left) * (1 + 1e-5) + 1e-5


@given(choices())
def test_without_a_share_heads_keep_the_one_choice_and_with_all_their_own(made):
    scores, order, protected, k, _ = made
    none, every = (choose_for_heads(scores, order, protected, k, torch.full((len(scores),), one))
                   for one in (0.0, 1.0))
    rest = k - protected
    for head in none.tolist():  # but for one token: each order has a first
        assert len(set(head) & set(order[:k].tolist())) >= k - min(1, rest)
    for head, score in zip(every.tolist(), scores, strict=True):
        marked = score.index_fill(0, order[:protected], 2.0)
        assert len(set(head) & set(marked.topk(k).indices.tolist())) >= k - min(1, rest)


@pytest.mark.parametrize(("protected", "k"), [(5, 4), (0, 11)])
def test_what_cannot_be_kept_is_refused(protected, k):
    with pytest.raises(ValueError, match="protected"):
        choose_for_heads(torch.rand(2, 10), torch.arange(10), protected, k, torch.ones(2))
