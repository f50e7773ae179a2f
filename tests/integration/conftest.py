"""Tiny random decoders, made in memory and saved for the engine to load."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engines import make_tiny_model


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
