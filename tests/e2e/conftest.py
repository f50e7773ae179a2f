"""The embedded SmolLM2-135M-Instruct and a real text."""

from __future__ import annotations

from pathlib import Path

import pytest

from qm_vllm.assets.embedded import ensure_model
from qm_vllm.assets.essay import demo_document
from qm_vllm_eval.serving.tiny_model import TOOLS_TEMPLATE, make_tiny_chat_model

FACT = "7391842"


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Folder of the converted model; converted once into the user's cache."""
    return ensure_model()


@pytest.fixture(scope="session")
def tiny_chat(smollm2, tmp_path_factory) -> Path:
    """Folder of a small random decoder with the embedded model's tokenizer: it is fast."""
    return make_tiny_chat_model(smollm2, tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_agent(smollm2, tmp_path_factory) -> Path:
    """The same with a chat template that shows tools, their calls and their results."""
    folder = tmp_path_factory.mktemp("models") / "tiny-agent"
    return make_tiny_chat_model(smollm2, folder, TOOLS_TEMPLATE)


@pytest.fixture(scope="session")
def essay_ids(smollm2):
    """``essay_ids(n)``: the first n token ids of a real essay."""
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(smollm2).encode(demo_document().text)

    def cut(length: int) -> list[int]:
        assert len(ids) >= length
        return list(ids[:length])

    return cut


@pytest.fixture(scope="session")
def hidden_fact(smollm2, essay_ids):
    """``hidden_fact(depth)``: ids of an essay that holds a fact at this depth, and asks for it."""
    from transformers import AutoTokenizer

    tokenizer, essay = AutoTokenizer.from_pretrained(smollm2), essay_ids(1400)

    def ids(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    def make(depth: float) -> list[int]:
        place = int(depth * len(essay))
        return [
            *essay[:place], *ids(f"\nThe access code of the harbor gate is {FACT}.\n"),
            *essay[place:], *ids("\nThe access code of the harbor gate is"),
        ]

    return make
