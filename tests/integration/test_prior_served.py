"""The prior in a real engine: the transformers class's logits, K positions, any mix of K."""

from __future__ import annotations

import pytest
import torch

from qm_vllm.prior import PriorConfig, QuickMergePriorForCausalLM, StatePrompts
from tests.engines import engine, scheduler_of
from tests.priors import random_prior

BLOCK, VOCABULARY = 32, 64
LENGTHS = (1, 5, 16, 40, 33)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = random_prior(
        PriorConfig(
            input_size=24, hidden_size=128, intermediate_size=192, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=4, num_tokens=50, num_classes=4,
            num_time_bins=10, max_position_embeddings=512,
        ),
        std=0.15,
    )
    target = tmp_path_factory.mktemp("prior")
    model.save_pretrained(target)
    return target


@pytest.fixture(scope="module")
def served(folder):
    with engine(
        folder, enable_prompt_embeds=True, skip_tokenizer_init=True, max_model_len=512,
        block_size=BLOCK, max_logprobs=VOCABULARY,
    ) as llm:
        yield llm


@pytest.fixture(scope="module")
def states():
    return [torch.randn(size, 24, generator=torch.Generator().manual_seed(size))
            for size in LENGTHS]


def parameters(**changes):
    from vllm import SamplingParams

    fields = {"max_tokens": 6, "temperature": 0.0, "ignore_eos": True, "detokenize": False,
              "logprobs": VOCABULARY}
    return SamplingParams(**{**fields, **changes})


def generate(llm, folder, rows, **changes):
    prompts = StatePrompts.from_pretrained(folder)
    outputs = llm.generate(
        [prompts.prompt(row) for row in rows], parameters(**changes), use_tqdm=False
    )
    return [output.outputs[0] for output in outputs]


def test_logits_are_those_of_the_transformers_class(served, folder, states):
    model = QuickMergePriorForCausalLM.from_pretrained(folder).eval()
    for row, output in zip(states, generate(served, folder, states), strict=True):
        ids = list(output.token_ids)
        with torch.inference_mode():
            logits = model(row[None], input_ids=torch.tensor([ids[:-1]])).logits
        logits = logits[0, len(row) - 1 :].log_softmax(-1)
        assert logits.argmax(-1).tolist() == ids
        for step, entries in enumerate(output.logprobs):
            assert len(entries) >= VOCABULARY - 1
            for token, entry in entries.items():
                assert entry.logprob == pytest.approx(float(logits[step, token]), abs=1e-4)


def test_a_ragged_batch_equals_one_by_one(served, folder, states):
    together = generate(served, folder, states)
    for row, output in zip(states, together, strict=True):
        (alone,) = generate(served, folder, [row])
        assert alone.token_ids == output.token_ids


@pytest.mark.parametrize("size", [1, 32, 33, 80])
def test_holds_blocks_for_k_positions_and_what_was_generated(served, folder, states, size):
    pool = scheduler_of(served).kv_cache_manager.block_pool
    idle = pool.get_num_free_blocks()
    row = torch.randn(size, 24, generator=torch.Generator().manual_seed(100 + size))
    prompt = StatePrompts.from_pretrained(folder).prompt(row)
    core = served.llm_engine
    core.add_request(f"blocks-{size}", prompt, parameters(max_tokens=40))
    generated = 0
    while core.has_unfinished_requests():
        for output in core.step():
            generated = len(output.outputs[0].token_ids)
            if not output.finished:
                held = idle - pool.get_num_free_blocks()
                assert held == -(-(size + generated - 1) // BLOCK)
    assert generated == 40
    assert pool.get_num_free_blocks() == idle


def test_a_head_is_chosen_by_its_ids(served, folder, states):
    config = PriorConfig.from_pretrained(folder)
    for head in ("classes", "time_bins"):
        allowed = list(config.ids(head))
        outputs = generate(
            served, folder, states, max_tokens=2, logprobs=None, allowed_token_ids=allowed
        )
        assert all(set(output.token_ids) <= set(allowed) for output in outputs)


def test_equal_states_hit_the_prefix_cache_and_others_do_not(served, folder, states):
    (first,) = generate(served, folder, [states[3]])
    core = served.llm_engine
    for row, hits in ((states[3], BLOCK), (states[3] + 1, 0)):
        prompt = StatePrompts.from_pretrained(folder).prompt(row)
        core.add_request(f"cached-{hits}", prompt, parameters())
        while core.has_unfinished_requests():
            for output in core.step():
                last = output
        assert last.num_cached_tokens == hits
        assert (last.outputs[0].token_ids == first.token_ids) == (hits > 0)


def test_weights_of_another_shape_are_refused(folder, tmp_path):
    import json
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    config = json.loads((broken / "config.json").read_text())
    config["num_tokens"] += 7
    (broken / "config.json").write_text(json.dumps(config))
    message = r"shape \[64, 128\], but its config.json says \[71, 128\]"
    with pytest.raises(Exception, match=message), engine(
        broken, enable_prompt_embeds=True, skip_tokenizer_init=True, max_model_len=512
    ):
        pass
