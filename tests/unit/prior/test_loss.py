"""L_AR against the paper's sums, written as loops in float64."""

from __future__ import annotations

import pytest
import torch

from qm_vllm.prior.loss import baselines, l_ar, reverse
from tests.unit.prior.conftest import make

LENGTHS = (7, 4, 1, 2)


@pytest.fixture
def batch():
    torch.manual_seed(1)
    rows = [torch.randn(size, 6, dtype=torch.float64) for size in LENGTHS]
    return rows, torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=float("nan"))


def papers(model, rows):
    """Sums of squared errors of both directions, one prefix at a time, and what they are over."""
    forward = backward = 0.0
    pairs = 0
    for row in rows:
        x = model.standardised(row)
        for t in range(len(row) - 1):
            stack = model.forward_stack
            guess = stack.state_head(stack(stack.input_proj(x[None, : t + 1]))[0, -1])
            forward += float((guess - x[t + 1]).square().sum())
            stack = model.backward_stack
            suffix = x[t + 1 :].flip(0)
            guess = stack.state_head(stack(stack.input_proj(suffix[None]))[0, -1])
            backward += float((guess - x[t]).square().sum())
            pairs += 1
    return forward, backward, pairs * rows[0].shape[1]


def test_equals_the_papers_sums_per_position_and_dimension(batch):
    rows, states = batch
    model = make().double()
    loss = l_ar(model, states, torch.tensor(LENGTHS))
    forward, backward, count = papers(model, rows)
    assert loss.forward.item() == pytest.approx(forward / count, rel=1e-9)
    assert loss.backward.item() == pytest.approx(backward / count, rel=1e-9)
    assert loss.total.item() == pytest.approx((forward + backward) / count, rel=1e-9)
    assert loss.positions == sum(size - 1 for size in LENGTHS)


def test_a_ragged_batch_is_the_weighted_mean_of_its_rows(batch):
    rows, states = batch
    model = make().double()
    whole = l_ar(model, states, torch.tensor(LENGTHS))
    parts = [l_ar(model, row[None], torch.tensor([len(row)])) for row in rows]
    mean = sum(float(part.total) * part.positions for part in parts) / whole.positions
    assert whole.total.item() == pytest.approx(mean, rel=1e-9)


def test_one_state_has_nothing_to_predict(model):
    loss = l_ar(model, torch.randn(1, 1, 6), torch.tensor([1]))
    assert (loss.positions, loss.total.item()) == (0, 0.0)
    loss.total.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_targets_are_scored_after_each_rows_own_last_state(batch):
    rows, states = batch
    model = make().double()
    targets = torch.tensor([[3, 0, 9], [1, -100, -100], [2, 4, -100], [11, 10, 9]])
    loss = l_ar(model, states, torch.tensor(LENGTHS), targets)
    nll = []
    for row, wanted in zip(rows, targets, strict=True):
        ids = wanted[wanted >= 0]
        logits = model(row[None], input_ids=ids[None, :-1]).logits[0, len(row) - 1 :]
        nll += (-logits.log_softmax(-1)[torch.arange(len(ids)), ids]).tolist()
    assert loss.target_ids == len(nll) == 9
    assert loss.targets.item() == pytest.approx(sum(nll) / len(nll), rel=1e-9)
    plain = l_ar(model, states, torch.tensor(LENGTHS))
    assert loss.total.item() == pytest.approx(
        plain.total.item() + loss.targets.item(), rel=1e-9
    )


def test_without_a_twin_there_is_no_backward_loss():
    loss = l_ar(make(backward_twin=False), torch.randn(1, 5, 6), torch.tensor([5]))
    assert loss.backward.item() == 0
    assert loss.total.item() == loss.forward.item() > 0


def test_baselines_by_hand(batch):
    rows, states = batch
    model = make().double()
    found = baselines(model, states, torch.tensor(LENGTHS))
    x = [model.standardised(row) for row in rows]
    count = sum(len(row) - 1 for row in x) * 6
    copy = sum((row[1:] - row[:-1]).square().sum() for row in x) / count
    mean = sum(row[1:].square().sum() + row[:-1].square().sum() for row in x) / count
    assert found["copy_last"].item() == pytest.approx(2 * copy.item())
    assert found["mean_state"].item() == pytest.approx(mean.item())
    single = make(backward_twin=False).double()
    single.state_mean.copy_(model.state_mean)
    single.state_std.copy_(model.state_std)
    alone = baselines(single, states, torch.tensor(LENGTHS))
    forward = sum(row[1:].square().sum() for row in x) / count
    assert alone["copy_last"].item() == pytest.approx(copy.item())
    assert alone["mean_state"].item() == pytest.approx(forward.item())


def test_reverse_turns_each_row_within_its_length():
    states = torch.arange(10.0).reshape(2, 5, 1)
    turned = reverse(states, torch.tensor([5, 3]))
    assert turned[..., 0].tolist() == [[4, 3, 2, 1, 0], [7, 6, 5, 8, 9]]


@pytest.mark.parametrize(
    ("lengths", "targets", "message"),
    [
        ([3, 2], None, r"lengths must be \[1\]"),
        ([0], None, "between 1 and 3"),
        ([4], None, "between 1 and 3"),
        ([3], torch.zeros(2, 1, dtype=torch.long), r"targets must be \[1, M >= 1\]"),
        ([3], torch.zeros(1, 0, dtype=torch.long), r"not \[1, 0\]"),
    ],
)
def test_shapes_that_disagree_are_named(model, lengths, targets, message):
    with pytest.raises(ValueError, match=message):
        l_ar(model, torch.zeros(1, 3, 6), torch.tensor(lengths), targets)


def test_nan_is_found_where_it_is(model):
    states = torch.zeros(2, 4, 6)
    states[1, 2, 3] = float("nan")
    with pytest.raises(ValueError, match=r"\[2, 4, 6\].*sequence 1 at position 2"):
        l_ar(model, states, torch.tensor([4, 3]))
    l_ar(model, states, torch.tensor([4, 2]))  # beyond the length nothing is read
