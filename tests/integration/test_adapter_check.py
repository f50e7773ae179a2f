"""What an adapter claims is compared with the model's own forward: a wrong one injects nothing."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from qm_vllm import QuickMergeConfig
from qm_vllm.engine import adapters
from qm_vllm.engine.adapters import llama
from qm_vllm.engine.jobs.worker_side import WorkerSide
from qm_vllm_patches.decoder import sequential_view
from tests.engines import engine, random_prompt
from tests.families import make_model
from tests.integration.generate import greedy, run
from tests.native_reference import NativeReference


def right(model):
    return llama.view(model)


def embeddings_doubled(model):
    return sequential_view(model, multiplier=2.0)


def residual_forgotten(model):
    return sequential_view(model, complete=True)


def of_layer(model, index, change):
    view = llama.view(model)
    view.layers[index] = change(view.layers[index])
    return view


def attention_sharper(model):
    def change(layer):
        return replace(layer, attn=replace(layer.attn, scale=1.05 * layer.attn.scale))

    return of_layer(model, 0, change)


def layers_exchanged(model):
    view = llama.view(model)
    view.layers[3], view.layers[4] = view.layers[4], view.layers[3]
    return view


def layer_forgotten(model):
    view = llama.view(model)
    view.layers.pop()
    return view


def angles_of_others(model):
    def change(layer):
        rotary = copy.deepcopy(layer.rotary)
        rotary.cos_sin_cache = rotary.cos_sin_cache.roll(1, 1)
        return replace(layer, rotary=rotary)

    return of_layer(model, 0, change)


class Deaf(torch.nn.Module):
    """Turns as another module does, and has a table that it does not look at."""

    def __init__(self, own):
        super().__init__()
        self.own = [own]
        self.register_buffer("cos_sin_cache", own.cos_sin_cache.clone())

    def forward_cpu(self, positions, query, key):
        return self.own[0].forward_cpu(positions, query, key)

    def forward_cuda(self, positions, query, key):
        return self.own[0].forward_cuda(positions, query, key)


def table_of_no_use(model):
    view = llama.view(model)
    rotary = Deaf(view.layers[0].rotary)  # all layers share one, else nothing is placed
    view.layers[:] = [replace(layer, rotary=rotary) for layer in view.layers]
    return view


def fails(model):
    def change(layer):
        return replace(layer, run=None)

    return of_layer(model, 1, change)


@pytest.fixture(scope="module")
def served(tiny_models):
    """(what looks at a model, the model, its runner, its worker side) of a running engine."""
    from vllm.distributed.kv_transfer import get_kv_transfer_group

    config = QuickMergeConfig(ratio=0.4)
    with engine(tiny_models("llama"), config, skip_tokenizer_init=True) as llm:
        core = llm.llm_engine.engine_core.engine_core
        runner = core.model_executor.driver_worker.worker.model_runner
        yield llm, runner, get_kv_transfer_group().worker_side


@pytest.mark.parametrize(("view", "sentence"), [
    (right, None),
    (embeddings_doubled, "other keys in layer 1 than"),
    (residual_forgotten, "other keys in layer 1 than"),
    (attention_sharper, "other keys in layer 1 than"),
    (layers_exchanged, "other keys in layer 3 than"),
    (angles_of_others, "other keys in layer 0 than"),
    (layer_forgotten, "knows 5 of 6 attention layers"),
    (table_of_no_use, "layer 0 does not turn by its table"),
    (fails, "the dense pass fails on this model: TypeError"),
], ids=lambda value: getattr(value, "__name__", ""))
def test_a_wrong_adapter_is_refused_with_the_place_and_the_size(
    served, monkeypatch, view, sentence
):
    _, runner, attached = served
    model, device = runner.get_model(), attached.runner.device
    monkeypatch.setitem(adapters.FAMILIES, "LlamaForCausalLM", view)
    made = WorkerSide(attached.config, attached.block_size, facts=attached.native.facts)
    made.kv_caches = attached.kv_caches
    made.attach_model(model, torch.float32, device)
    before = [dict(vars(layer.module.impl)) for layer in llama.view(model).layers]
    made.attach_runner(model, runner, device, 4096)
    for layer, own in zip(llama.view(model).layers, before, strict=True):
        vars(layer.module.impl).update(own)  # the second look at steps is not needed
    problem = made.start_message().problem
    if sentence is None:
        assert problem is None
        assert len(made.runner.view.layers) == 6
    else:
        assert sentence in problem
        assert ("their size" in problem) is ("than" in sentence)
        assert made.runner.view.layers == []  # nothing is left that could be run
        assert made.native.problem is None


def test_the_engine_serves_as_before_when_it_was_looked_at(served, want):
    llm, _, _ = served
    ids = random_prompt(500, 1)
    ((tokens, report),) = run(llm, [ids], greedy(12, delivery="inject"))
    assert report["status"] == "compressed", report
    assert tokens == want(ids, 0.4).tokens


def test_layers_of_another_family_are_served_natively(monkeypatch, tmp_path):
    """EXAONE's layers return whole states; Llama's view adds what was in the middle once more."""
    folder, ids = make_model("exaone-4", tmp_path), random_prompt(400, 2)
    expected = NativeReference(str(folder)).generate(
        ids, block_size=32, max_tokens=12, ratio=0.4, special=(0, 1, 2), first=True
    )
    monkeypatch.setitem(adapters.FAMILIES, "Exaone4ForCausalLM", llama.view)
    config = QuickMergeConfig(ratio=0.4, head_share=0.0)
    with engine(folder, config, skip_tokenizer_init=True) as llm:
        ((plain, _),) = run(llm, [ids], greedy(12, enabled=False))
        ((got, report),) = run(llm, [ids], greedy(12, delivery="inject"))
        assert report["status"] == "untouched"
        assert "than the model's own forward: they differ by" in report["reason"]
        assert got == plain
        ((got, report),) = run(llm, [ids], greedy(12, details=True))
        assert (report["status"], report["delivery"]) == ("compressed", "native"), report
        expected = expected.of(report["details"]["kept_indices"])
        assert got[: expected.decided()] == expected.tokens[: expected.decided()]
