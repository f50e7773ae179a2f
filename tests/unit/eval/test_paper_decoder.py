"""The decoder of Tables 1 and 2: training, likelihoods and what it makes up."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from qm_vllm_eval.baselines import METHODS
from qm_vllm_eval.paper import measure
from qm_vllm_eval.paper.decoder import sampled, target_nats, train
from qm_vllm_eval.paper.prepared import Prepared, Split
from qm_vllm_eval.paper.scale import SMOKE

CPU = torch.device("cpu")
SCALE = replace(SMOKE, steps=60, batch=8, width=32, learning_rate=5e-3)
WIDTH, TOKENS, TARGETS = 12, 10, 3


def split(count, seed, vocabulary=6):
    """The targets say which of a few directions the states have in common: easy to learn."""
    draw = torch.Generator().manual_seed(seed)
    kinds = torch.eye(vocabulary, WIDTH) * 6
    kind = torch.randint(vocabulary, (count,), generator=draw)
    states = torch.randn(count, TOKENS, WIDTH, generator=draw) + kinds[kind][:, None]
    targets = (kind[:, None] + torch.arange(TARGETS)) % vocabulary
    truth = torch.randn(count, TARGETS, WIDTH, generator=draw)
    return Split(
        states.half(), torch.rand(count, TOKENS, generator=draw),
        torch.rand(count, TOKENS, generator=draw),
        torch.randint(0, 255, (count, 20), generator=draw).byte(), torch.full((count,), 20),
        targets, torch.full((count,), float(TARGETS)), truth, torch.zeros(count),
    )


def prepared(task="text"):
    codes = torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(5))
    return Prepared(task, split(64, 0), split(32, 1), 6, "made up", "none", codes)


@pytest.fixture(scope="module")
def trained():
    data = prepared()
    method = METHODS["QuickMerge++"](measure.spec(data))
    return train(method, data, SCALE, 0, CPU)


def test_it_learns_what_the_states_say(trained):
    assert trained.losses[1] < 0.5 * trained.losses[0]
    _, right, kept = target_nats(trained, split(32, 1), 8, CPU)
    assert right.double().mean() > 0.8
    assert int(kept.min()) >= 1
    assert int(kept.max()) <= TOKENS


def test_equal_seeds_equal_weights(trained):
    data = prepared()
    again = train(METHODS["QuickMerge++"](measure.spec(data)), data, SCALE, 0, CPU)
    for name, value in trained.decoder.state_dict().items():
        assert torch.equal(value, again.decoder.state_dict()[name]), name


def test_likelihoods_do_not_depend_on_the_batch(trained):
    one = target_nats(trained, split(9, 2), 1, CPU)[0]
    many = target_nats(trained, split(9, 2), 9, CPU)[0]
    torch.testing.assert_close(one, many, atol=1e-4, rtol=1e-4)


def test_greedy_ids_are_the_likeliest_under_teacher_forcing(trained):
    """What it says with its cache, fed back as targets, is the likeliest at each place."""
    data = split(9, 3)
    ids = sampled(trained, data, 5, 4, 0, CPU, greedy=True)
    assert ids.shape == (9, 5)
    told = replace(data, targets=ids)
    _, right, _ = target_nats(trained, told, 9, CPU)
    assert bool(right.all())


def test_drawn_ids_follow_the_seed_and_the_likelihood(trained):
    data = split(9, 3)
    first, again = (sampled(trained, data, 4, 4, 7, CPU) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, sampled(trained, data, 4, 4, 8, CPU))
    nats = target_nats(trained, replace(data, targets=first), 9, CPU)[0]
    random_ids = torch.randint(6, first.shape, generator=torch.Generator().manual_seed(0))
    other = target_nats(trained, replace(data, targets=random_ids), 9, CPU)[0]
    assert nats.mean() < other.mean()


@pytest.mark.parametrize("task", ["text", "image", "video"])
def test_a_cell_has_its_figures(task):
    scale = replace(SCALE, steps=4)
    row = measure.cell("- AR prior", prepared(task), scale, 1, CPU)
    expected = {"text": {"ppl"}, "image": {"accuracy"}, "video": {"fvd", "code_ppl"}}[task]
    assert expected <= row.keys()
    assert all(row[name] >= 0 for name in expected)
    assert row["rate"] == pytest.approx(TOKENS / row["kept_mean"])


def test_pieces_outside_the_vocabulary_cost_their_choice_too(trained):
    data = prepared()
    costly = replace(data.test, extra_nats=torch.full((32,), 3.0))
    scale = replace(SCALE, steps=4)
    plain = measure.cell("no context", data, scale, 0, CPU)["ppl"]
    dear = measure.cell("no context", replace(data, test=costly), scale, 0, CPU)["ppl"]
    assert dear == pytest.approx(plain * torch.e ** (3.0 / TARGETS), rel=1e-6)
