"""Unit tests run small tensors: one thread each, and the same examples every time."""

from __future__ import annotations

import logging

import hypothesis
import pytest
import torch

torch.set_num_threads(1)
hypothesis.settings.register_profile("unit", deadline=None, derandomize=True)
hypothesis.settings.load_profile("unit")


@pytest.fixture
def vllm_log(caplog, monkeypatch):
    """What the plug-in says through vLLM's loggers, from INFO.

    An engine that an earlier test started in this process may have made them quiet, and vLLM's
    own set-up keeps what they say from the root logger, where ``caplog`` listens.
    """
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    with caplog.at_level(logging.INFO, logger="vllm"):
        yield caplog
