"""What the prior is told beside states: times and queries."""

from __future__ import annotations

import json
import math

import pytest
import torch

from qm_vllm.prior.batches import BatchMaker
from qm_vllm.prior.data import DataError, Sample, read
from qm_vllm.prior.loss import l_ar
from qm_vllm.prior.side_inputs import hashed_words, time_features
from tests.unit.prior.conftest import TinyEncoder, make, shape


def test_times_are_sines_of_the_place_in_the_sequence():
    kept = torch.tensor([0, 3, 9])
    found = time_features(kept, 10, 6)
    for row, place in zip(found, kept.tolist(), strict=True):
        t = (place + 0.5) / 10
        want = [f(math.pi * 2**i * t) for i in range(3) for f in (math.sin, math.cos)]
        assert row.tolist() == pytest.approx(want, abs=1e-6)


def test_times_depend_on_the_share_alone():
    assert torch.allclose(
        time_features(torch.tensor([7]), 15, 8), time_features(torch.tensor([22]), 45, 8)
    )


def test_words_of_a_query_are_the_same_everywhere():
    ids = hashed_words("Where is the Cup, the red cup?", 1024)
    assert ids == hashed_words("where IS the cup the red cup", 1024)
    assert ids[3] == ids[6]
    assert all(0 <= i < 1024 for i in ids)
    assert len(ids) == 7
    with pytest.raises(ValueError, match="no word"):
        hashed_words("?!", 16)


class Features(TinyEncoder):
    """Without a tokenizer, as features are."""

    tokenizer = None


def maker(**changes):
    return BatchMaker(Features(), shape(input_size=10, time_features=4, **changes), 24, 0)


def test_batches_have_times_behind_the_states():
    sample = Sample("the quick brown fox jumps", span=(0.3, 0.8))
    fixed = maker().fixed([sample], 0.5)
    assert fixed.states.shape == (1, 12, 10)
    kept = maker().compressed(sample, 0.5).kept
    assert torch.allclose(fixed.states[0, :, 6:], time_features(kept, 24, 4))
    noisy = maker().noisy([sample], [0.5], 0.5, torch.Generator().manual_seed(0))
    assert noisy.states.shape == (1, 12, 10)
    assert noisy.states[0, :, 6:].abs().max() <= 1


def test_feature_files_are_read_and_scored_once(tmp_path, monkeypatch):
    import qm_vllm.prior.batches as batches

    file = tmp_path / "clip"
    calls = []

    class Counting(Features):
        def stream(self, source, *, window=None):
            calls.append(source)
            return super().stream("some words of a clip", window=window)

    def drawn(room):
        monkeypatch.setattr(batches, "CACHE_BYTES", room)
        made = BatchMaker(Counting(), shape(), 24, 0)
        return [
            made.noisy([Sample(file)], [0.5], 0.5, torch.Generator().manual_seed(0)).states
            for _ in range(3)
        ]

    kept, calls_kept = drawn(1 << 20), len(calls)
    anew = drawn(0)
    assert (calls_kept, len(calls) - calls_kept) == (1, 3)
    assert all(torch.equal(a, b) for a, b in zip(kept, anew, strict=True))


def test_a_query_is_read_and_not_scored():
    batch = maker().fixed(
        [Sample("a long text", span=(0.3, 0.8), query="where is it"), Sample("b", label=2)], 0.5
    )
    words = hashed_words("where is it", 5)
    assert batch.targets.tolist() == [[*words, 9, 11], [7, -100, -100, -100, -100]]
    assert batch.given.tolist() == [3, 0]
    model = make(input_size=10, time_features=4)
    loss = l_ar(model, batch.states, batch.lengths, batch.targets, batch.given)
    assert loss.target_ids == 3
    nll = []
    for row, (ids, skip) in enumerate((([*words, 9, 11], 3), ([7], 0))):
        size = int(batch.lengths[row])
        out = model(batch.states[row : row + 1, :size], input_ids=torch.tensor([ids[:-1]]).long())
        logits = out.logits[0, size - 1 :].log_softmax(-1)
        nll += [-float(logits[i, ids[i]].detach()) for i in range(skip, len(ids))]
    assert loss.targets.item() == pytest.approx(sum(nll) / 3, rel=1e-4)


def test_a_manifest_may_ask(tmp_path):
    torch.save(torch.randn(9, 6), tmp_path / "a.pt")
    line = {"path": "a.pt", "span": [0.1, 0.2], "query": "where?"}
    (tmp_path / "rows.jsonl").write_text("\n".join([json.dumps(line)] * 11))
    data = read([tmp_path / "rows.jsonl"], [], 8)
    assert data.has_queries
    assert data.train[0].query == "where?"
    (tmp_path / "rows.jsonl").write_text('{"path": "a.pt", "query": "where?"}')
    with pytest.raises(DataError, match="line 1: query='where\\?' must be text, and needs a span"):
        read([tmp_path / "rows.jsonl"], [], 8)


@pytest.mark.parametrize("count", [3, 10, -2])
def test_impossible_time_features_are_named(count):
    with pytest.raises(ValueError, match="time_features="):
        shape(input_size=10, time_features=count)
