"""Inputs of ``qm-vllm generate`` that break other programs: each costs its own line alone."""

from __future__ import annotations

import io
import json
import time
from contextlib import suppress
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from qm_vllm import local_engine
from qm_vllm.cli.batch_lines import (
    Item,
    LineRefused,
    Problem,
    finished_ids,
    parse_line,
    read_items,
    result_line,
)
from qm_vllm.cli.generate import tokenised, write_all
from qm_vllm.cli.main import app
from qm_vllm.config import OPTIONS
from qm_vllm.errors import UserError

GOOD = {"id": "good", "prompt": "one two"}


class Tokenizer:
    """A token for each word; UTF-8 or nothing, as the tokenizers of models are."""

    chat_template = None

    def encode(self, text, **_):
        text.encode()
        if "refused" in text:
            raise TypeError("TextEncodeInput must be Union[TextInputSequence]")
        return list(range(len(text.split())))


class Engine:
    """Answers "ok" to everything; 99 tokens are too many."""

    def __init__(self):
        self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=99))
        self.sizes = []

    def get_tokenizer(self):
        return Tokenizer()

    def generate(self, prompts, params, use_tqdm):
        self.sizes.append(len(prompts))
        return [
            SimpleNamespace(outputs=[SimpleNamespace(text="ok", finish_reason="stop")],
                            kv_transfer_params={"quickmerge": {}})
            for _ in prompts
        ]


@pytest.fixture
def generate(tmp_path, monkeypatch):
    """Runs the command over the bytes of an input; its exit code, what it said, and the output."""
    engine = Engine()
    monkeypatch.setattr(local_engine, "start", lambda *args, **more: engine)
    monkeypatch.setattr(local_engine, "sampling", lambda *args, **more: None)

    def call(content):
        source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
        source.write_bytes(content)
        done = CliRunner().invoke(app, [
            "generate", "--model", "m", "--input", str(source), "--output", str(target),
        ])
        assert "Traceback" not in done.output
        assert done.exception is None or isinstance(done.exception, SystemExit)
        lines = target.read_bytes().splitlines() if target.exists() else []
        return done.exit_code, done.output, [json.loads(line) for line in lines]

    return call


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (rb'{"id": 1, "prompt": "\ud83d lone"}',
         r'"prompt" holds half of a surrogate pair (\ud83d) at character 1, which is no text'),
        (rb'{"id": 1, "prompt": "low \ude00"}', r"(\ude00) at character 5"),
        (b'{"id": 1, "prompt": "\xed\xa0\xbd as bytes"}', "byte 22 is not UTF-8"),
        (rb'{"id": 1, "messages": [{"role": "user", "content": "\ud83d"}]}',
         r'"content" holds half of a surrogate pair'),
        (rb'{"id": 1, "messages": [{"role": "\ud83d", "content": "x"}]}', '"role" holds half'),
        (rb'{"id": 1, "\ud83d": 1, "prompt": "x"}', r"unknown field '\ud83d'"),
        (b'{"id": 1, "prompt": "refused"}', "the tokenizer refuses the text: TextEncodeInput"),
        (b'{"id": 1, "messages": [{"role": "user", "content": "refused"}]}',
         "the tokenizer refuses the text"),
        (b'{"id": 1, "prompt": "  "}', "the prompt has no tokens"),
        (b'{"id": 1, "prompt": "' + b"word " * 99 + b'"}', "the prompt has 99 tokens"),
        (b'{"id": 1, "prompt": "' + b"word " * 99_000 + b'"}', "the prompt has more than"),
        (b'{"id": 1, "prompt": "one", "prompt": "two"}', "the field 'prompt' stands there twice"),
        (b'{"id": 1, "id": 2, "prompt": "x"}', "the field 'id' stands there twice"),
        (b'{"id": NaN, "prompt": "x"}', "NaN is no number in JSON"),
        (b'{"id": 1, "prompt": "x", "quickmerge": {"ratio": NaN}}', "NaN is no number in JSON"),
        (b'{"id": 1, "prompt": "x", "quickmerge": {"ratio": 1e400}}', "ratio=inf"),
        (b'{"id": 1, "prompt": null}', 'needs either "prompt" or "messages"'),
        (b'{"id": 1, "pro', "Unterminated string"),
        (b"\x00" * 100, "not valid JSON"),
    ],
)  # fmt: skip
def test_a_bad_line_costs_itself_alone(generate, bad, message):
    lines = [json.dumps({"id": f"line {i}", "prompt": "a b"}).encode() for i in range(3)]
    code, said, rows = generate(b"\n".join([lines[0], bad, *lines[1:]]) + b"\n")
    assert code == 1
    assert "line 2: " in said
    assert message in said
    assert "3 written, 1 failed, 0 were in the output already" in said
    assert rows == [{"id": f"line {i}", "text": "ok", "quickmerge": {}} for i in range(3)]


ODD = (
    10**400, -(10**400), float("inf"), "x", "\ud83d", [], [[]], {}, [[0, 10**400]], None, True,
    "1e400", [1, 2], [["a", "b"]], [None], {"a": 1}, -1, 0, 1.5, "", [[1]], [[1, 2, 3]], 10**30,
    ["system", "\ud83d"], ["system", 3], [{}],
)


@pytest.mark.parametrize("name", [*OPTIONS, "preset", "unknown", "\ud83d", ""])
def test_options_of_any_value_are_taken_or_refused_with_a_sentence(name):
    for value in ODD:
        line = json.dumps({"id": 1, "prompt": "x", "quickmerge": {name: value}})
        with suppress(LineRefused):  # anything else is an error of the whole run
            assert parse_line(1, line).options.keys() <= {f"qm_{name}"}


def test_marks_and_line_ends_of_other_systems(generate):
    good = json.dumps(GOOD).encode()
    second = json.dumps({"id": "second", "prompt": "x\u2028y"}, ensure_ascii=False).encode()
    code, said, rows = generate(b"\xef\xbb\xbf" + good + b"\r\n\r\n" + second + b"\r\n")
    assert (code, [row["id"] for row in rows]) == (0, ["good", "second"]), said


def test_a_file_that_begins_with_a_mark_and_an_empty_line(generate):
    code, _, rows = generate(b"\xef\xbb\xbf\r\n" + json.dumps(GOOD).encode())
    assert (code, [row["id"] for row in rows]) == (0, ["good"])


def test_ids_that_look_alike_are_both_answered_and_found_again(generate):
    names = ["1", 1, "\u00e9", "e\u0301", "\ud83d", "\\ud83d", " 1", 10**30, "true", "null"]
    content = "".join(json.dumps({"id": name, "prompt": "x"}) + "\n" for name in names).encode()
    code, said, rows = generate(content)
    assert code == 0, said
    assert [(type(row["id"]), row["id"]) for row in rows] == [(type(n), n) for n in names]
    code, said, again = generate(content)
    assert (code, again) == (0, rows)
    assert f"0 written, 0 failed, {len(names)} were in the output already" in said


def test_a_cut_last_line_is_named_and_the_rest_is_answered(generate):
    whole = json.dumps(GOOD).encode()
    code, said, rows = generate(whole + b"\n" + json.dumps({"id": 2, "prompt": "x"}).encode()[:-4])
    assert (code, [row["id"] for row in rows]) == (1, ["good"])
    assert "line 2: not valid JSON" in said
    assert "the file may have been cut off there" in said
    code, said, rows = generate(whole)  # nothing is missing but the line end
    assert code == 0, said


def test_a_result_with_any_id_can_be_written_and_read(tmp_path):
    target = tmp_path / "out"
    line = result_line(Item(1, "\ud83d", "x", None, {}), "\U0001f600", {})
    target.write_text(line, encoding="utf-8")
    assert "\U0001f600" in line
    assert finished_ids(target) == {'"\ud83d"'}


def test_reading_takes_time_by_the_length_of_a_line(tmp_path):
    def seconds(size):
        path = tmp_path / "in"
        path.write_bytes(b'{"id": 1, "prompt": "' + b"a line of text\\n" * size + b'"}\n{"id": 2}')
        started = time.process_time()
        first, second = read_items(path)
        assert (len(first.prompt), second.line) == (15 * size, 2)
        return time.process_time() - started

    short = min(seconds(40_000) for _ in range(3))
    assert seconds(40_000 * 16) < 16 * 8 * max(short, 1e-3)  # quadratic would be 256 times


def test_of_a_text_far_too_long_only_the_beginning_is_tokenised():
    class Counting(Tokenizer):
        seen = 0

        def encode(self, text, **_):
            self.seen += len(text)
            return super().encode(text)

    tokenizer = Counting()
    with pytest.raises(local_engine.TooLong, match="more than"):
        local_engine.text_ids(tokenizer, "word " * 1_000_000, most=100)
    assert tokenizer.seen <= local_engine.PROBED * 100
    spaces = "word" + " " * 1_000_000  # few tokens in many characters: all of it counts
    assert local_engine.text_ids(tokenizer, spaces, most=100) == [0]


@pytest.mark.parametrize("error", [ValueError("no"), TypeError("no"), OverflowError("no")])
def test_a_request_that_vllm_refuses_costs_itself_alone(error):
    def run(batch):
        if any(item.id == "bad" for item, _ in batch):
            raise error
        return Engine().generate(batch, None, False)

    ready = [(Item(i, name, "x", None, {}), [1]) for i, name in enumerate(["a", "bad", "c"], 1)]
    assert write_all(ready, run, io.StringIO(), 8) == (
        2, [Problem(2, "vLLM refused the request: no")]
    )


def test_an_engine_that_dies_ends_the_run_with_a_sentence_whatever_it_raises():
    class EngineDeadError(Exception):
        pass

    def run(batch):
        raise EngineDeadError("EngineCore encountered an issue")

    with pytest.raises(UserError, match="goes on from here"):
        write_all([(Item(1, "a", "x", None, {}), [1])], run, io.StringIO(), 8)


def test_a_template_that_fails_costs_its_line_alone():
    class Chat(Tokenizer):
        chat_template = "any"

        def apply_chat_template(self, messages, **_):
            if messages[0]["role"] != "user":
                raise RuntimeError("roles must alternate")
            return messages[0]["content"]

    engine, problems = Engine(), []
    engine.get_tokenizer = Chat
    items = [
        Item(i, i, None, [{"role": role, "content": "hello there"}], {})
        for i, role in enumerate(["user", "tool", "user"], 1)
    ]
    assert [item.line for item, _ in tokenised(engine, items, problems)] == [1, 3]
    assert [problem.line for problem in problems] == [2]
    assert "roles must alternate" in problems[0].message
