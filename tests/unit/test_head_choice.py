"""What each KV head keeps for itself, against one head at a time in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qm_vllm.compress import HeadOrder, choose_for_heads, scores_of_heads
from qm_vllm.compress.head_choice import shares_of_heads

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
    """Scores, the order that all follow, what stays in heads that look up and what in all, K, how
    much heads look things up, and the share of those that do not."""
    heads, count = draw(st.integers(1, 4)), draw(st.integers(1, 40))
    protected = torch.tensor(draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    everywhere = protected & torch.tensor(
        draw(st.lists(st.booleans(), min_size=count, max_size=count))
    )
    k = draw(st.integers(max(1, int(protected.sum())), count))
    order = torch.tensor(draw(st.permutations(range(count))))
    order = order[protected[order].long().sort(descending=True, stable=True).indices]
    looking = draw(st.lists(st.floats(0, 2, width=32), min_size=heads, max_size=heads))
    seed = draw(st.integers(0, 99))
    scores = torch.rand(heads, count, generator=torch.Generator().manual_seed(seed))
    share = draw(st.floats(0, 1))
    return scores, order, protected, everywhere, k, torch.tensor(looking), share


@given(choices())
def test_heads_keep_what_stays_in_them_and_the_best_of_two_orders(made):
    scores, order, protected, everywhere, k, looking, share = made
    ours = HeadOrder.of(order, protected, everywhere, torch.Tensor.to)
    kept = choose_for_heads(scores, ours, looking, k, share)
    assert kept.shape == (len(scores), k)
    marked, all_heads = protected.tolist(), everywhere.tolist()
    for head, score, look in zip(kept.tolist(), scores.tolist(), looking.tolist(), strict=True):
        assert head == sorted(set(head))
        finds = look >= 1
        stays = {i for i, one in enumerate(marked if finds else all_heads) if one}
        assert stays <= set(head)
        # The protected end comes last where it need not stay.
        free = [i for i in order.tolist() if not marked[i]]
        free += [i for i in order.tolist() if marked[i] and i not in stays]
        own = sorted(free, key=lambda i, score=score: -score[i])
        mine = min(share, 0.05) if finds else share * (1 - look / 2)
        mine = min(max(mine, 1e-6), 1 - 1e-6)
        place = {i: min(own.index(i) / mine, free.index(i) / (1 - mine)) for i in free}
        inside = [place[i] for i in set(head) - stays]
        outside = [place[i] for i in set(free) - set(head)]
        assert not inside or not outside or max(inside) <= min(outside) * (1 + 1e-4) + 1e-5


@given(choices())
def test_without_a_share_heads_keep_the_one_choice(made):
    scores, order, protected, _, k, looking, _ = made
    ours = HeadOrder.of(order, protected, protected, torch.Tensor.to)
    for head in choose_for_heads(scores, ours, looking, k, 0.0).tolist():
        # But for one token: each order has a first.
        assert len(set(head) & set(order[:k].tolist())) >= k - min(1, k - int(protected.sum()))


@given(choices())
def test_with_all_of_it_a_head_that_looks_nothing_up_keeps_its_own(made):
    scores, order, protected, everywhere, k, looking, _ = made
    ours = HeadOrder.of(order, protected, everywhere, torch.Tensor.to)
    kept = choose_for_heads(scores, ours, torch.zeros_like(looking), k, 1.0)
    for head, score in zip(kept.tolist(), scores, strict=True):
        best = score.masked_fill(everywhere, 2.0).topk(k).indices.tolist()
        assert len(set(head) & set(best)) >= k - min(1, k - int(everywhere.sum()))


def test_a_head_spends_less_on_itself_the_more_it_looks_things_up():
    looking = torch.tensor([0.0, 0.1, 0.5, 0.999, 1.0, 7.0])
    assert shares_of_heads(looking, 0.8).tolist() == pytest.approx(
        [0.8, 0.76, 0.6, 0.4004, 0.05, 0.05]
    )
    assert shares_of_heads(looking, 0.02).tolist()[-1] == pytest.approx(0.02)


@pytest.mark.parametrize(("protected", "k"), [(5, 4), (0, 11)])
def test_what_cannot_be_kept_is_refused(protected, k):
    order = HeadOrder(torch.arange(10), 0, protected)
    with pytest.raises(ValueError, match="protected"):
        choose_for_heads(torch.rand(2, 10), order, torch.ones(2), k, 1.0)
