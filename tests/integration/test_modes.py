"""Modes of a request: what comes out equals plain vLLM.

A plain engine answers first, on the whole prompt and on the ids that the transformers-only
reference keeps. Then one engine with the plug-in answers the same. docs/compatibility.md.
"""

from __future__ import annotations

import itertools
import os
import random
import re
import string
from dataclasses import replace
from types import SimpleNamespace

import pytest

from qm_vllm import QuickMergeConfig, request_args
from tests.engines import engine, make_tiny_model, scheduler_of
from tests.integration.left_empty import left_empty
from tests.reference import Reference

RATIO, LENGTH, STEPS = 0.4, 500, 16
CHOICES = ["apple pie", "banana split"]
PATTERN = r"[a-c]{8}-[0-9]{4}"
FEW = {"allowed_token_ids": [10, 11, 12, 300]}
FULL = {"ratio": 1.0}
"""Keeps all: must change nothing."""
KEPT = {"delivery": "prefill", "details": True}
"""Must be a plain run of the kept ids."""


def letters(length: int, seed: int) -> list[int]:
    """Ids of letter pairs: text that every tokenizer can turn back."""
    return [259 + random.Random(seed * 10_000 + i).randrange(253) for i in range(length)]


def tiny_with_text(folder):
    """The tiny Llama with a tokenizer: pad, bos, eos, 256 bytes, 253 pairs of letters."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    target = make_tiny_model("llama", folder)
    names = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    pairs = list(itertools.product(string.ascii_lowercase, repeat=2))[: 512 - len(names)]
    names += ["".join(pair) for pair in pairs]
    tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(target)
    return target


def ask(llm, prompts, options, **sampling):
    """Answers with ``report`` (None if vLLM gave none); ``options`` None: without the plug-in."""
    from vllm import SamplingParams

    settings = {"max_tokens": STEPS, "temperature": 0.0, "ignore_eos": True, **sampling}
    options = options if isinstance(options, list) else [options] * len(prompts)
    params = [
        SamplingParams(extra_args=request_args(**o) if o else None, **settings) for o in options
    ]
    inputs = [{"prompt_token_ids": list(ids)} for ids in prompts]
    return [answer(out) for out in llm.generate(inputs, params, use_tqdm=False)]


def answer(output):
    choice = output.outputs[0]
    return SimpleNamespace(
        text=choice.text, tokens=list(choice.token_ids), logprobs=choice.logprobs,
        end=(choice.finish_reason, choice.stop_reason),
        report=(output.kv_transfer_params or {}).get("quickmerge"),
    )


def structured(**constraint):
    from vllm.sampling_params import StructuredOutputsParams

    return {"structured_outputs": StructuredOutputsParams(**constraint), "ignore_eos": False}


def pair(seen):
    """A pair of letters that the text has, as one word."""
    return re.search("[a-z]{2}", seen.text[4:]).group()


MODES = {
    "greedy": lambda a, b: {},
    "choice": lambda a, b: structured(choice=CHOICES),
    "regex": lambda a, b: structured(regex=PATTERN),
    "repetition_penalty": lambda a, b: {"repetition_penalty": 1.7},
    "presence_penalty": lambda a, b: {"presence_penalty": 1.8, **FEW},
    "frequency_penalty": lambda a, b: {"frequency_penalty": 1.8, **FEW},
    "stop": lambda a, b: {"stop": [pair(a), pair(b)]},
    "stop_token_ids": lambda a, b: {"stop_token_ids": [a.tokens[6], b.tokens[6]]},
    "bad_words": lambda a, b: {"bad_words": [pair(a), pair(b)]},
    "min_tokens": lambda a, b: {"min_tokens": 9, "stop_token_ids": [a.tokens[3], b.tokens[3]]},
    "allowed_token_ids": lambda a, b: FEW,
    "seed": lambda a, b: {"temperature": 0.9, "seed": 5},
    "logprobs": lambda a, b: {"logprobs": 3},
}
"""Sampling parameters, from the greedy answers to the whole prompt and to the kept ids."""


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Answers of plain vLLM, of an engine that is gone when the plug-in's starts."""
    from vllm.sampling_params import BeamSearchParams

    folder = tiny_with_text(tmp_path_factory.mktemp("modes"))
    ids = letters(LENGTH, 1)
    wanted = Reference(str(folder)).generate(
        ids, ratio=RATIO, block_size=1, max_tokens=1, E=4, score_layers=(1, 2),
        special=frozenset({0, 1, 2}),
    )
    both = [ids, [ids[i] for i in wanted.kept]]
    with engine(folder) as llm:
        free = ask(llm, both, None)
        modes = {name: make(*free) for name, make in MODES.items()}
        answers = {name: ask(llm, both, None, **sampling) for name, sampling in modes.items()}
        (beams,) = llm.beam_search(
            [{"prompt_token_ids": ids}], BeamSearchParams(beam_width=2, max_tokens=4)
        )
    return SimpleNamespace(
        folder=folder, ids=ids, kept=wanted.kept, modes=modes, answers=answers, beams=beams,
    )


@pytest.fixture(scope="module")
def llm(plain):
    config = QuickMergeConfig(ratio=RATIO, encoder_chunk_tokens=64)
    with engine(
        plain.folder, config, max_num_batched_tokens=256, max_num_seqs=16,
        async_scheduling=True,
    ) as llm:
        yield llm


@pytest.fixture(autouse=True)
def nothing_left_behind(llm):
    with left_empty(llm):
        yield


@pytest.mark.parametrize("mode", MODES)
def test_sampling_modes_equal_plain_vllm(llm, plain, mode):
    sampling = plain.modes[mode]
    ways = [FULL, {**FULL, "delivery": "prefill"}, KEPT]
    whole, short = plain.answers[mode]
    got = ask(llm, [plain.ids] * 3, ways, **sampling)
    others = [plain.answers[other][0].tokens for other in MODES if other != mode]
    assert mode in ("greedy", "logprobs") or whole.tokens not in others
    for mine, want in zip(got, (whole, whole, short), strict=True):
        assert (mine.tokens, mine.text, mine.end) == (want.tokens, want.text, want.end)
    assert [mine.report["status"] for mine in got] == ["compressed"] * 3
    assert got[2].report["details"]["kept_indices"] == plain.kept


@pytest.mark.parametrize("way", [{"enabled": False}, {"delivery": "native"}, FULL, None])
def test_a_seeded_prompt_of_several_steps_is_answered(llm, plain, way):
    """vLLM's CPU engine would die of it; the draws of unfinished prompts are taken back."""
    ids, seeded = plain.ids * 2, {"temperature": 0.9, "seed": 5}
    alone, *together = ask(llm, [ids], way, **seeded) + ask(llm, [ids] * 2, way, **seeded)
    assert [mine.tokens for mine in together] == [alone.tokens] * 2
    if way in ({"enabled": False}, FULL):
        (whole,) = ask(llm, [plain.ids], {"enabled": False}, **seeded)
        assert whole.tokens == plain.answers["seed"][0].tokens


def test_rules_hold_for_injected_prompts(llm, plain):
    def injected(mode, **changes):
        (mine,) = ask(llm, [plain.ids], None, **{**plain.modes[mode], **changes})
        assert mine.report["status"] == "compressed"
        assert mine.report["kept_tokens"] < 0.4 * LENGTH
        return mine

    assert injected("choice").text in CHOICES
    assert re.fullmatch(PATTERN, injected("regex").text)
    assert set(injected("allowed_token_ids").tokens) <= set(FEW["allowed_token_ids"])
    assert injected("seed").tokens == injected("seed").tokens
    assert injected("seed").tokens != injected("seed", seed=6).tokens
    free = injected("greedy")
    assert pair(free) not in injected("bad_words", bad_words=[pair(free)]).text
    stop = {"stop_token_ids": [free.tokens[3]]}
    assert injected("stop_token_ids", **stop).tokens == free.tokens[:4]
    assert len(injected("min_tokens", **stop).tokens) >= 9


def test_penalties_count_the_kept_ids_only(llm, plain):
    ids, strong = plain.ids, {"repetition_penalty": 50.0}
    whole, inject = ask(llm, [ids] * 2, [FULL, {"details": True}], **strong)
    kept = {ids[i] for i in inject.report["details"]["kept_indices"]}
    assert not set(whole.tokens) & set(ids)
    assert not set(inject.tokens) & kept
    assert set(inject.tokens) & (set(ids) - kept)


def test_logprobs_are_those_of_plain_vllm(llm, plain):
    full, inject = ask(llm, [plain.ids] * 2, [FULL, None], logprobs=3)
    want = plain.answers["logprobs"][0]
    for mine, other, token in zip(full.logprobs, want.logprobs, want.tokens, strict=True):
        assert set(mine) == set(other)
        assert mine[token].logprob == pytest.approx(other[token].logprob, abs=1e-4)
    assert len(inject.logprobs) == STEPS
    for row, token in zip(inject.logprobs, inject.tokens, strict=True):
        assert row[token].logprob == max(entry.logprob for entry in row.values())


def test_what_ran(llm):
    """A CPU has no Model Runner V2 without Triton, and switches asynchronous scheduling off."""
    from vllm.platforms import current_platform

    core = llm.llm_engine.engine_core.engine_core
    settings = llm.llm_engine.vllm_config.scheduler_config
    wanted = os.environ.get("VLLM_USE_V2_MODEL_RUNNER", "0") == "1"
    assert core.model_executor.driver_worker.worker.use_v2_model_runner == wanted
    assert settings.enable_chunked_prefill
    assert settings.max_num_batched_tokens < LENGTH
    assert settings.async_scheduling is not current_platform.is_cpu()
    assert (core.batch_queue is None) is current_platform.is_cpu()


def test_streamed_parts_join_to_the_whole_answer(llm, plain):
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    whole, ways = plain.answers["greedy"][0], [FULL, {}]
    for name, way in enumerate(ways):
        params = SamplingParams(
            max_tokens=STEPS, temperature=0.0, ignore_eos=True,
            output_kind=RequestOutputKind.DELTA, extra_args=request_args(**way) if way else None,
        )
        llm.llm_engine.add_request(str(name), {"prompt_token_ids": plain.ids}, params)
    parts = [[], []]
    while llm.llm_engine.has_unfinished_requests():
        for out in llm.llm_engine.step():
            parts[int(out.request_id)].append(answer(out))
    (short,) = ask(llm, [plain.ids], None)
    for mine, want in zip(parts, (whole, short), strict=True):
        assert [token for part in mine for token in part.tokens] == want.tokens
        assert "".join(part.text for part in mine) == want.text
        assert len(mine) == STEPS
        # From the first part on: the frontend may end the answer at any of them.
        assert [part.report["status"] for part in mine] == ["compressed"] * STEPS


def test_beams_are_prompts_of_their_own(llm, plain, monkeypatch):
    """Every step of a beam is a new request: keep-all equals plain, a share is chosen anew."""
    from vllm.sampling_params import BeamSearchParams

    def search(width):
        params = BeamSearchParams(beam_width=width, max_tokens=4)
        (found,) = llm.beam_search([{"prompt_token_ids": plain.ids}], params)
        return [beam.tokens for beam in found.sequences]

    tokens = list(plain.ids)
    for _ in range(4):
        tokens += ask(llm, [tokens], None, max_tokens=1)[0].tokens
    assert search(1) == [tokens]
    side = scheduler_of(llm).connector.scheduler_side
    monkeypatch.setattr(side, "config", replace(side.config, ratio=1.0))
    assert search(2) == [beam.tokens for beam in plain.beams.sequences]
