"""Small priors and encoders made in memory."""

from __future__ import annotations

import pytest
import torch

from qm_vllm.encoders import Window
from qm_vllm.prior import PriorConfig
from tests.priors import random_prior


def shape(**changes):
    """Configuration of a prior of a few thousand parameters."""
    fields = {
        "input_size": 6, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "num_tokens": 5, "num_classes": 3,
        "num_time_bins": 4, "encoder": "tiny",
    }
    return PriorConfig(**{**fields, **changes})


def make(seed=0, **changes):
    """A prior whose weights are large enough to matter."""
    return random_prior(shape(**changes), std=0.3, seed=seed)


@pytest.fixture
def model():
    return make()


class TinyTokenizer:
    """A character is a token."""

    def __call__(self, text, add_special_tokens=False):
        return {"input_ids": [ord(letter) % 5 for letter in text]}

    def __len__(self):
        return 5


class TinyEncoder:
    """Characters as fixed random vectors; a layer adds the mean of the two before."""

    name, hidden_size, num_layers = "tiny", 6, 2
    device = torch.device("cpu")
    tokenizer = TinyTokenizer()

    def __init__(self):
        self.table = torch.randn(128, 6, generator=torch.Generator().manual_seed(3))

    def stream(self, source, *, window=None):
        ids = torch.tensor([ord(letter) % 128 for letter in source[:window]], dtype=torch.long)
        layers = [self.table[ids]]
        for _ in range(2):
            before = torch.roll(layers[-1], 1, 0)
            layers.append(layers[-1] * 0.6 + before * 0.4)
        yield Window(tuple(layers), 0, ids, torch.zeros(len(ids), dtype=torch.bool))


@pytest.fixture
def encoder():
    return TinyEncoder()


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("the cat sat on the mat and the dog ran to the door " * 60)
    return path
