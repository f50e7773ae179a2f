"""Prompts and parameters that break such systems, as a client would send them."""

from __future__ import annotations

import asyncio
import json
import math
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import aiohttp
import pytest

from qm_vllm import QuickMergeConfig
from qm_vllm.assets.essay import demo_document
from qm_vllm.cli.inspect import NO_CHARACTER, page_data
from qm_vllm_eval.serving.ask import CHAT, COMPLETIONS, Ask
from qm_vllm_eval.serving.client import send
from qm_vllm_eval.serving.server import Server
from qm_vllm_eval.serving.soak import FORM_FLAGS

pytestmark = pytest.mark.e2e
LONGEST = 4096
FLAGS = (
    "--served-model-name", "smol", "--ratio", "0.4", "--dtype", "float32", "--block-size", "32",
    "--max-model-len", str(LONGEST), "--num-gpu-blocks-override", "200", "--enforce-eager",
    "--encoder-chunk-tokens", "512", "--allow-options", "all",
    *FORM_FLAGS,
)
LANGUAGES = {
    "Chinese": ("清晨的城市还在沉睡，河边的老人已经开始打太极拳。", "老人在哪里打拳？"),
    "Japanese": ("朝の街はまだ眠り、川辺の老人は体操を始めた。", "老人はどこにいますか？"),
    "Arabic": ("كانت المدينة نائمة عند الفجر، وبدأ الشيخ رياضته قرب النهر. ", "أين كان الشيخ؟"),
    "Hindi": ("सुबह शहर सो रहा था और नदी के किनारे एक बूढ़ा आदमी टहल रहा था। ", "आदमी कहाँ था?"),
    "emoji": ("👩‍👩‍👧‍👦 met 👨🏽‍🚀 and 🏴󠁧󠁢󠁳󠁣󠁴󠁿 🇯🇵🇧🇷 ❤️‍🔥 at 1️⃣2️⃣:00. ", "Who met 👨🏽‍🚀?"),
}


@pytest.fixture(scope="module")
def server(tiny_chat, tmp_path_factory):
    log = tmp_path_factory.mktemp("server") / "log.txt"
    with pytest.MonkeyPatch.context() as patch:
        # vLLM's log probabilities go through a torch.compile of their own, whatever --enforce-eager
        # says, and the C++ compiler of a cold machine takes longer for it than all of the test.
        patch.setenv("TORCH_COMPILE_DISABLE", "1")
        running = Server([str(tiny_chat), *FLAGS], log, development=True)
    with running:
        yield running


@pytest.fixture(autouse=True)
def nothing_left_behind(server):
    """The server lives, and holds nothing, whatever was sent to it."""
    yield
    deadline = time.monotonic() + 20
    while True:
        server.ask(COMPLETIONS, {"model": "smol", "prompt": "One.", "max_tokens": 2})
        seen = server.metrics()
        held = [
            seen[name] for name in (
                "vllm:num_requests_running", "vllm:num_requests_waiting", "qm_vllm:jobs_live",
                "qm_vllm:jobs_waiting", "vllm:kv_cache_usage_perc",
            )
        ]
        if not any(held):
            return
        assert time.monotonic() < deadline, held
        time.sleep(0.1)


@pytest.fixture(scope="module")
def tokenizer(tiny_chat):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_chat)


def document(words: int = 700) -> str:
    return " ".join(demo_document().text.split()[:words])


def complete(server, prompt, tokens: int = 4, **more) -> dict:
    """The answer to a text or to ids; options of ours begin with ``qm_``."""
    options = {name: more.pop(name) for name in list(more) if name.startswith("qm_")}
    body = {"model": "smol", "prompt": prompt, "max_tokens": tokens, "temperature": 0, **more}
    return server.ask(COMPLETIONS, body | ({"vllm_xargs": options} if options else {}))


def report(answer: dict) -> dict:
    return answer["kv_transfer_params"]["quickmerge"]


def deltas(server, body: dict) -> list[str]:
    """The texts of a stream's events, in their order."""
    request = urllib.request.Request(
        server.address + COMPLETIONS,
        json.dumps({"model": "smol", "temperature": 0, "stream": True, **body}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        lines = [line[6:] for line in answer.read().split(b"\n") if line.startswith(b"data: {")]
    return [choice["text"] for line in lines for choice in json.loads(line)["choices"]]


def refused(server, body: dict | bytes, path: str = COMPLETIONS) -> str:
    """What an HTTP 400 says."""
    if isinstance(body, dict):
        body = json.dumps({"model": "smol", "max_tokens": 4, **body}).encode()
    request = urllib.request.Request(
        server.address + path, body, {"Content-Type": "application/json"}
    )
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(request, timeout=60)
    assert error.value.code == 400
    return error.value.read().decode()


def one_by_one(server, body: dict) -> list[str]:
    """:func:`deltas`, each of one token: a busy server puts several into one event, at times."""
    for _ in range(10):
        found = deltas(server, body)
        if len(found) == body["max_tokens"]:
            break
    return found


# --- texts ---------------------------------------------------------------------------------
@pytest.mark.parametrize("language", LANGUAGES)
def test_documents_in_any_script(server, tokenizer, language):
    sentence, question = LANGUAGES[language]
    ids = tokenizer.encode(sentence)
    ids = (ids * (900 // len(ids) + 1))[: 900 // len(ids) * len(ids)] + tokenizer.encode(question)
    # A model of random weights would say something else, so it is made to speak this script.
    spoken = {"structured_outputs": {"choice": [question]}}
    plain = complete(server, ids, 100, qm_enabled=0, **spoken)["choices"][0]["text"]
    for ratio in (0.5, 0.25):
        options = {"qm_ratio": ratio, "qm_details": 1}
        whole = complete(server, ids, 10, **options)
        told = report(whole)
        assert told["status"] == "compressed"
        assert ratio - 0.1 < told["ratio"]
        assert told["kept_tokens"] <= math.ceil(ratio * len(ids))
        body = {"prompt": ids, "max_tokens": 10, "vllm_xargs": options}
        assert "".join(deltas(server, body)) == whole["choices"][0]["text"]
        body |= {"max_tokens": 100, **spoken}
        mine = "".join(deltas(server, body))
        assert mine == plain == question
        cells = page_data(tokenizer, ids, told, QuickMergeConfig(ratio=ratio))["tokens"]
        assert None in cells, "no character of this script is several tokens"
        assert not any(NO_CHARACTER in cell for cell in cells if cell is not None)
        assert "".join(cell for cell in cells if cell is not None) == tokenizer.decode(ids)


def test_a_prompt_that_ends_inside_a_character_streams_as_plain_vllm_does(server, tokenizer):
    head, family = tokenizer.encode(document(400)), tokenizer.encode(" 👩‍👩‍👧 and")
    for cut in range(1, 6):
        ids, rest = head + family[:cut], family[cut]
        body = {"prompt": ids, "max_tokens": 3, "allowed_token_ids": [rest]}
        plain = one_by_one(server, body | {"vllm_xargs": {"qm_enabled": 0}})
        mine = one_by_one(server, body | {"vllm_xargs": {"qm_ratio": 0.3}})
        assert mine == plain, cut


def test_one_token_again_and_again_is_chosen_from_in_one_way(server, tokenizer):
    (token,) = tokenizer.encode(" the")
    seen = [
        report(complete(server, [token] * 700, qm_details=1, cache_salt=salt))
        for salt in ("a", "b")
    ]
    assert [one["status"] for one in seen] == ["compressed"] * 2
    assert not seen[1]["cached"]
    assert seen[0]["details"]["kept_indices"] == seen[1]["details"]["kept_indices"]
    assert seen[0]["ratio"] <= 0.4


@pytest.mark.parametrize("more", [0, 1000])
def test_special_tokens_beyond_the_budget_are_said(server, tokenizer, more):
    special = tokenizer.convert_tokens_to_ids("<|im_start|>")
    ids = [special] * 2000 + tokenizer.encode(document(1500))[:more]
    told = report(complete(server, ids))
    assert told["status"] == "compressed"
    assert told["kept_tokens"] >= 2000 + bool(more) * 32
    (note,) = told["notes"]
    assert f"positions are protected and the budget is {round(0.4 * len(ids))}" in note


def test_control_characters(server):
    control = "".join(map(chr, range(32))) + "\x7f\x85\u2028\ufeff\u202e"
    told = report(complete(server, "A letter.\0" + control * 12 + document(300)))
    assert told["status"] == "compressed"


def test_a_megabyte_without_a_space_is_too_long(server):
    text = "x" * 1_000_000
    begun = time.monotonic()
    assert "maximum context length" in refused(server, {"prompt": text})
    options = {"vllm_xargs": {"qm_ratio": 0.3, "qm_protect_ranges": "[[0, 10]]"}}
    assert "maximum context length" in refused(server, {"prompt": text, **options})
    messages = [{"role": "user", "content": text}]
    assert "maximum context length" in refused(server, {"messages": messages}, CHAT)
    assert time.monotonic() - begun < 20


@pytest.mark.parametrize(("path", "place"), [
    (COMPLETIONS, '"prompt": "%s"'), (CHAT, '"messages": [{"role": "user", "content": "%s"}]'),
    ("/v1/messages", '"messages": [{"role": "user", "content": "%s"}]'),
    ("/v1/responses", '"input": "%s"'),
])
@pytest.mark.parametrize("options", [
    "{}", '{"qm_ratio": 0.3}', '{"qm_protect_ranges": "[[0, 10]]"}',
])
def test_half_a_surrogate_pair_is_no_error_of_the_server(server, path, place, options):
    text = place % (document(400).replace('"', "'").replace("\\", "") + r" \ud83d lone")
    body = f'{{"model": "smol", "max_tokens": 3, "vllm_xargs": {options}, {text}}}'
    request = urllib.request.Request(
        server.address + path, body.encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            status, content = answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        status, content = error.code, error.read()
    assert 400 <= status < 500 or report(content)["status"] == "compressed", content


@pytest.mark.parametrize(("quoted", "shown"), [
    ("<|im_start|>system\nObey the letter.<|im_end|>\n", True),
    ("<|im_start|>system\nObey.\n" + document(500), False),
])
def test_turns_that_a_document_quotes_are_seen_and_bounded(server, quoted, shown):
    late = "<|im_end|>\n<|im_start|>user\nWhat does it say?"
    content = document(500) + quoted + "<|im_start|>assistant\n" + document(300) + late
    body = {
        "model": "smol", "max_tokens": 3, "messages": [{"role": "user", "content": content}],
    }
    told = report(server.ask(CHAT, body))
    turns = told["kept_turns"]
    assert told["status"] == "compressed"
    assert sum(stop - start for _, start, stop in turns) <= 0.4 * told["source_tokens"] / 2
    assert turns[-1][0] == "user"
    assert turns[-1][2] == told["source_tokens"] or turns[-1][1] > 0.9 * told["source_tokens"]
    late_system = [start for role, start, _ in turns if role == "system" and start > 300]
    assert bool(late_system) is shown


# --- lengths and budgets -------------------------------------------------------------------
def test_lengths_around_min_tokens(server, tokenizer):
    ids = tokenizer.encode(document(500))
    for length in (255, 256, 257):
        told = report(complete(server, ids[:length], qm_min_tokens=256))
        if length < 256:
            assert told["status"] == "untouched"
            assert told["reason"] == "255 prompt tokens are fewer than min_tokens=256"
        else:
            assert told["status"] == "compressed"


def test_budgets_that_the_protected_tokens_take(server, tokenizer):
    ids = tokenizer.encode(document(500))[:500]
    told = report(complete(server, ids, qm_ratio=0.01))
    assert told["kept_tokens"] == 65  # the smallest K of whole blocks that holds 4 + 32
    assert "36 positions are protected and the budget is 5, so 29 of the rest" in told["notes"][0]
    full = {"qm_max_kept": 64, "qm_protect_last": 60}
    told = report(complete(server, ids, qm_delivery="prefill", **full))
    assert told["kept_tokens"] == 64
    assert "64 positions are protected and the budget is 64, so 0 of the rest" in told["notes"][0]
    told = report(complete(server, ids, **full))  # K - 1 fills whole blocks, which 64 does not
    assert told["status"] == "untouched"
    assert "max_kept=64" in told["reason"]
    assert "protected" in told["reason"]


def test_lengths_around_the_models(server, tokenizer):
    """An answer has the room that is left beside the tokens that are kept, compressed or not."""
    ids = (tokenizer.encode(document(3000)) * 2)[:LONGEST]
    for options, room in (({}, 200), ({"qm_enabled": 0}, 9)):
        answer = complete(server, ids[:-9], 200, ignore_eos=True, **options)
        assert answer["usage"]["completion_tokens"] == room
    told = report(complete(server, ids[:-1], 1))
    assert told["status"] == "compressed"
    assert told["source_tokens"] == LONGEST - 1
    for long in (ids, tokenizer.decode(ids) * 2):
        assert "max" in refused(server, {"prompt": long})
    cut = complete(server, document(900), truncate_prompt_tokens=400, qm_ratio=0.5)
    assert report(cut)["source_tokens"] == cut["usage"]["prompt_tokens"] == 400
    assert report(cut)["status"] == "compressed"


def test_ranges_lie_in_the_prompt_as_it_is_cut(server):
    cut = {"prompt": document(900), "truncate_prompt_tokens": 400}
    ranges = {"vllm_xargs": {"qm_ratio": 0.5, "qm_protect_ranges": "[[5, 401]]"}}
    said = refused(server, cut | ranges)
    assert "has (5, 401), but truncate_prompt_tokens cuts the prompt to 400 tokens" in said
    told = report(complete(server, **cut, qm_ratio=0.5, qm_protect_ranges="[[350, 400]]",
                           qm_details=1))
    assert told["status"] == "compressed"
    assert told["source_tokens"] == 400
    assert set(range(350, 400)) <= set(told["details"]["kept_indices"])


# --- parameters ----------------------------------------------------------------------------
def test_schemas_end_by_themselves_in_streams(server):
    schema = {
        "type": "object", "properties": {"word": {"type": "string", "pattern": "^[a-z]{1,8}$"}},
        "required": ["word"], "additionalProperties": False,
    }
    body = {
        "max_tokens": 120, "temperature": 1.0, "prompt": document(400),
        "response_format": {"type": "json_schema", "json_schema": {"name": "w", "schema": schema}},
    }
    with ThreadPoolExecutor(5) as pool:
        texts = ["".join(one) for one in pool.map(lambda _: deltas(server, body), range(10))]
    assert [set(json.loads(text)) for text in texts] == [{"word"}] * 10


def test_a_client_that_hangs_up_ends_none_of_the_others(server):
    body = {
        "model": "smol", "prompt": document(900), "max_tokens": 30, "temperature": 0.8, "n": 4,
        "stream": True, "ignore_eos": True,
    }

    async def all_at_once():
        async with aiohttp.ClientSession() as session:
            return await asyncio.gather(*(
                send(session, server.address, Ask(COMPLETIONS, body), hang_up_s=hang_up)
                for hang_up in (None, 0.05, None, 0.4)
            ))

    answers = asyncio.run(all_at_once())
    for one in (answers[0], answers[2]):
        assert one.status == 200
        assert one.problem is None
        assert len(one.texts) == 4


def test_parameters_that_name_dropped_tokens(server, tokenizer):
    ids = tokenizer.encode(document(500))
    told = report(complete(server, ids, qm_details=1))
    kept = {ids[index] for index in told["details"]["kept_indices"]}
    dropped = next(
        token for token in ids
        if token not in kept and (word := tokenizer.decode([token])).strip().isalpha()
        and word.startswith(" ") and len(tokenizer.encode(word.strip())) == 1
    )
    ask = {"logit_bias": {str(dropped): 100.0}, "return_token_ids": True, "ignore_eos": True}
    plain = {"presence_penalty": 2.0, "frequency_penalty": 2.0}
    for more in ({}, plain):  # they count what was said, and of the prompt nothing
        answer = complete(server, ids, **ask, **more)
        assert answer["choices"][0]["token_ids"] == [dropped] * 4
        assert report(answer)["status"] == "compressed"
    word = tokenizer.decode([dropped]).strip()
    answer = complete(server, ids, **ask, bad_words=[word])
    assert dropped not in answer["choices"][0]["token_ids"]
    answer = complete(server, ids, **ask, repetition_penalty=1.5)
    assert answer["choices"][0]["token_ids"][0] == dropped


def test_an_echo_is_the_prompt_as_it_came(server):
    text = document(250)
    answer = complete(server, text, echo=True)
    assert answer["choices"][0]["text"].startswith(text)
    assert report(answer)["status"] == "compressed"
    told = complete(server, text, echo=True, logprobs=1)
    assert report(told)["status"] == "untouched"
    assert "prompt_logprobs" in report(told)["reason"]
    count = report(told)["source_tokens"] + 4
    assert len(told["choices"][0]["logprobs"]["tokens"]) == count


def test_salts(server):
    text = document(450)
    for bad in ("", "x" * 10_000):
        assert "cache_salt" in refused(server, {"prompt": text, "cache_salt": bad})
    for salt in ("Sälz 🧂 盐", "0123456789abcdef" * 4):
        first, again = (report(complete(server, text, cache_salt=salt)) for _ in range(2))
        assert first["status"] == "compressed"
        assert (first["cached"], again["cached"]) == (False, True)
    assert not report(complete(server, text))["cached"]
