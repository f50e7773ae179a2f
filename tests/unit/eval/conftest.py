"""What the tests of the bench share."""

from __future__ import annotations

import pytest
import torch


def make_prior(width: int = 128):
    """An untrained prior for the tiny decoders, with a corrector that does something."""
    from qm_vllm.prior import PriorConfig
    from qm_vllm_eval.methods.in_model_prior import InModelPrior

    torch.manual_seed(0)
    prior = InModelPrior(
        PriorConfig(
            input_size=width, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=2, backward_twin=False,
        )
    )
    torch.nn.init.normal_(prior.correction.weight, std=0.1)
    return prior


@pytest.fixture(scope="session")
def prior_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("in-model-prior")
    make_prior().save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def _trained_prior(prior_folder, monkeypatch):
    """Methods that read a trained prior find one."""
    monkeypatch.setenv("QM_VLLM_PRIOR", str(prior_folder))
