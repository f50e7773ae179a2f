"""Tiny random decoders, made in memory and saved for the engine to load."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engines import make_tiny_model
from tests.integration.left_empty import left_empty
from tests.reference import Reference


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory):
    """``tiny_models("llama")`` is the folder of a random 6-layer decoder of that family."""
    folder = tmp_path_factory.mktemp("tiny")
    made: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in made:
            made[family] = make_tiny_model(family, folder)
        return made[family]

    return get


@pytest.fixture(scope="module")
def want(tiny_models):
    """``want(ids, ratio)``: kept indices and greedy tokens by transformers; 1.0 is plain."""
    reference = Reference(str(tiny_models("llama")))

    def get(ids, ratio=1.0, block_size=32, max_tokens=12):
        return reference.generate(
            ids, ratio=ratio, block_size=block_size, max_tokens=max_tokens, E=4,
            score_layers=(1, 2), special=frozenset({0, 1, 2}),
        )

    return get


@pytest.fixture
def live(llm):
    """The module's engine, in which nothing may be left after the test."""
    with left_empty(llm):
        yield llm
