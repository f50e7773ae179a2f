"""A run learns, can be cut anywhere, and never mixes two priors."""

from __future__ import annotations

import json

import pytest
import torch

from qm_vllm.prior import QuickMergePriorForCausalLM
from qm_vllm.prior.batches import BatchMaker, kept
from qm_vllm.prior.checkpoint import CheckpointError
from qm_vllm.prior.data import Sample, read
from qm_vllm.prior.options import TrainOptions
from qm_vllm.prior.trainer import Trainer, learning_rate_share
from tests.unit.prior.conftest import TinyEncoder, shape

QUICK = {
    "batch_size": 4, "window_tokens": 24, "heldout_sequences": 4, "eval_every": 1e6,
    "checkpoint_every": 1e6, "learning_rate": 3e-3,
}


class Stop(Exception):
    pass


def trainer(text_file, out, *, after=None, encoder=None, shape_changes=(), **changes):
    """A trainer whose clock counts steps: each step is a second."""
    options = TrainOptions(**{**QUICK, "minutes": 2.0, **changes})

    def report(kind, figures):
        if kind == "step":
            made.state["seconds"] = float(figures["step"])
            if figures["step"] == after:
                raise Stop

    made = Trainer(
        encoder or TinyEncoder(), read([text_file], [], 24), shape(**dict(shape_changes)), options,
        out, report,
    )
    return made


def test_a_run_learns_and_leaves_its_files(text_file, tmp_path):
    metrics = trainer(text_file, tmp_path / "run", target_tokens=4).run()
    run = trainer(text_file, tmp_path / "run", target_tokens=4)
    assert metrics["heldout_l_ar"] < min(metrics["mean_state"], metrics["copy_last"])
    first = run.state["history"][0]
    assert metrics["heldout_l_ar"] < first["heldout_l_ar"]
    assert metrics["heldout_target_nll"] < first["heldout_target_nll"]
    assert metrics["steps"] == 120
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == metrics
    assert len(json.loads((tmp_path / "run" / "history.json").read_text())) == 2
    QuickMergePriorForCausalLM.from_pretrained(tmp_path / "run")


def test_a_run_that_was_cut_ends_as_one_that_was_not(text_file, tmp_path):
    whole = trainer(text_file, tmp_path / "whole", minutes=0.2).run()
    cut = trainer(text_file, tmp_path / "cut", minutes=0.2, after=5, checkpoint_every=4.0)
    with pytest.raises(Stop):
        cut.run()
    # The checkpoint is of step 4: the fifth is lost and done again.
    again = trainer(text_file, tmp_path / "cut", minutes=0.2)
    assert again.state["step"] == 4
    resumed = again.run()
    assert resumed["steps"] == whole["steps"] == 12
    assert resumed["tokens"] == whole["tokens"]
    assert resumed["heldout_l_ar"] == pytest.approx(whole["heldout_l_ar"], rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape_changes": {"hidden_size": 32}.items()}, "has hidden_size=16, this run 32"),
        ({"shape_changes": {"num_classes": 7}.items()}, "has num_classes=3, this run 7"),
    ],
)
def test_a_checkpoint_of_another_shape_is_refused(text_file, tmp_path, changes, message):
    trainer(text_file, tmp_path, minutes=0.05).run()
    with pytest.raises(CheckpointError, match=message):
        trainer(text_file, tmp_path, **changes)


def test_a_checkpoint_of_another_encoder_is_refused(text_file, tmp_path):
    trainer(text_file, tmp_path, minutes=0.05).run()
    other = TinyEncoder()
    other.name = "another"
    with pytest.raises(CheckpointError, match="reads tiny, not another"):
        trainer(text_file, tmp_path, encoder=other)


def test_learned_layer_weights_move_and_sum_to_one(text_file, tmp_path):
    metrics = trainer(text_file, tmp_path, minutes=0.5, learn_layers=True).run()
    weights = metrics["layer_weights"]
    assert sum(weights) == pytest.approx(1)
    assert abs(weights[0] - weights[1]) > 1e-4


def test_statistics_standardise_the_training_states(text_file, tmp_path):
    run = trainer(text_file, tmp_path)
    batch = run.maker.fixed(run.data.train, run.options.eval_ratio)
    rows = torch.cat([
        row[:n] for row, n in zip(run.model.standardised(batch.states), batch.lengths, strict=True)
    ])
    assert rows.mean(0).abs().max() < 0.2
    assert ((rows.std(0) > 0.85) & (rows.std(0) < 1.15)).all()


def test_k_varies_in_training_and_is_fixed_for_the_held_out(encoder):
    maker = BatchMaker(encoder, shape(), 24, 0)
    samples = [Sample("the quick brown fox jumps"), Sample("over it")]
    noisy = maker.noisy(samples, [0.3, 0.9], 0.5, torch.Generator().manual_seed(0))
    assert noisy.lengths.tolist() == [kept(24, 0.3), kept(7, 0.9)]
    one, two = maker.fixed(samples, 0.5), maker.fixed(samples, 0.5)
    assert one.lengths.tolist() == [12, 4]
    assert torch.equal(one.states, two.states)
    assert one.source_tokens == 31


def test_targets_of_each_head(encoder):
    maker = BatchMaker(encoder, shape(), 24, 3)
    batch = maker.fixed(
        [Sample("a text", following="abcdefgh"), Sample("b", label=2), Sample("c", span=(0.3, 0.8)),
         Sample("d")],
        0.5,
    )
    assert batch.targets.tolist() == [
        [ord("a") % 5, ord("b") % 5, ord("c") % 5], [7, -100, -100], [9, 11, -100], [-100] * 3,
    ]


def test_an_empty_sequence_is_named(encoder):
    with pytest.raises(ValueError, match="has no tokens"):
        BatchMaker(encoder, shape(), 24, 0).fixed([Sample("")], 0.5)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("minutes", 0), ("minutes", float("nan")), ("batch_size", 0), ("window_tokens", 7),
        ("ratios", (0.5, 0.4)), ("ratios", (0.0, 0.4)), ("eval_ratio", 1.5), ("warmup", 1.0),
        ("temperatures", (1.0, 0.0)), ("learning_rate", -1.0), ("target_tokens", -1),
    ],
)
def test_impossible_options_are_named(field, value):
    with pytest.raises(ValueError, match=field):
        TrainOptions(**{field: value})


def test_options_survive_json():
    options = TrainOptions(minutes=3, ratios=(0.2, 0.4))
    assert TrainOptions.from_dict(json.loads(json.dumps(options.to_dict()))) == options


def test_the_learning_rate_rises_and_falls():
    shares = [learning_rate_share(step / 100, 0.1) for step in range(101)]
    assert shares[:11] == sorted(shares[:11])
    assert shares[10:] == sorted(shares[10:], reverse=True)
    assert max(shares) == pytest.approx(1)
    assert shares[-1] == pytest.approx(0.05)
