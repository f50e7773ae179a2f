"""The names in the adapters' files: one view each, and classes that vLLM really makes of them."""

from __future__ import annotations

import pytest

from qm_vllm.engine.adapters import FAMILIES, FILES, PREFILL_ONLY, llama
from tests.families import FAMILIES as TINY
from tests.families import NATIVE_ONLY

NAMES = [name for file in FILES for name in file.ARCHITECTURES]


def test_a_name_stands_in_one_file():
    assert len(NAMES) == len(set(NAMES)) == len(FAMILIES)
    assert set(NAMES) >= PREFILL_ONLY


@pytest.mark.parametrize("name", NAMES)
def test_what_vllm_makes_of_a_name_is_a_name_of_the_same_file(name):
    """Its scheduler knows a model by the architecture, and its worker by the class."""
    from vllm.model_executor.models import registry

    known = {
        **registry._TEXT_GENERATION_MODELS, **registry._TRANSFORMERS_SUPPORTED_MODELS,
        **registry._TRANSFORMERS_BACKEND_MODELS,
    }
    if name not in known:  # a class of another spelling than the architecture
        assert name in {made for _, made in known.values()}
        return
    _, made = known[name]
    assert FAMILIES[made] is FAMILIES[name]


def test_aliases_of_llama_are_llamas_layers():
    from vllm.model_executor.models import registry

    for name in llama.ARCHITECTURES:
        module, _ = registry._TEXT_GENERATION_MODELS[name]
        assert module in {"llama", "mistral", "phi3", "ernie45"}  # the others derive from Llama's


def test_each_family_is_run_in_the_model_or_named_with_a_reason():
    import transformers

    for family, (prefix, _) in TINY.items():
        assert hasattr(transformers, f"{prefix}ForCausalLM")
        name = f"{prefix}ForCausalLM"
        in_model = name in FAMILIES and name not in PREFILL_ONLY
        assert in_model or family in NATIVE_ONLY, family
    assert set(NATIVE_ONLY) <= set(TINY)
