"""Input lines, resuming and batches of ``qm-vllm generate``, without an engine."""

from __future__ import annotations

import io
import json
import os
import threading
from types import SimpleNamespace

import pytest

from qm_vllm.cli.batch_lines import Item, Problem, finished_ids, read_items, result_line
from qm_vllm.cli.generate import plan, tokenised, write_all
from qm_vllm.errors import UserError


def write(path, *lines, end="\n"):
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text(text + end, encoding="utf-8")
    return path


def only(path):
    (entry,) = read_items(path)
    return entry


def test_prompt_messages_and_options(tmp_path):
    messages = [{"role": "user", "content": "hi"}]
    path = write(
        tmp_path / "in.jsonl",
        {"id": "a", "prompt": "text"},
        "",
        {"id": 7, "messages": messages, "quickmerge": {"ratio": 0.3}},
    )
    assert list(read_items(path)) == [
        Item(1, "a", "text", None, {}),
        Item(3, 7, None, messages, {"qm_ratio": 0.3}),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{nope", "not valid JSON"),
        ("[1]", "not a JSON object"),
        ({"prompt": "x"}, 'needs an "id"'),
        ({"id": True, "prompt": "x"}, 'needs an "id"'),
        ({"id": 1.5, "prompt": "x"}, 'needs an "id"'),
        ({"id": "", "prompt": "x"}, 'needs an "id"'),
        ({"id": 1}, "not both"),
        ({"id": 1, "prompt": "x", "messages": []}, "not both"),
        ({"id": 1, "prompt": ""}, "not empty"),
        ({"id": 1, "prompt": ["x"]}, "must be a text"),
        ({"id": 1, "messages": []}, "not empty"),
        ({"id": 1, "messages": ["x"]}, '"role" and a "content"'),
        ({"id": 1, "prompt": "x", "max": 3}, "unknown field 'max'"),
        ({"id": 1, "prompt": "x", "quickmerge": 3}, "must be an object"),
        ({"id": 1, "prompt": "x", "quickmerge": {"ratio": 2}}, "ratio=2"),
        ({"id": 1, "prompt": "x", "quickmerge": {"wrong": 2}}, "'wrong' is not an option"),
    ],
)
def test_a_bad_line_is_named_and_the_rest_goes_on(tmp_path, line, message):
    path = write(tmp_path / "in.jsonl", line, {"id": "good", "prompt": "x"})
    first, second = read_items(path)
    assert isinstance(first, Problem)
    assert first.line == 1
    assert message in first.message
    assert second == Item(2, "good", "x", None, {})


def test_bytes_that_are_not_text_are_a_bad_line(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"id": 1, "prompt": "\xff\xfe"}\n')
    assert "not valid JSON" in only(path).message


def test_a_duplicate_id_names_the_first_line(tmp_path):
    path = write(
        tmp_path / "in.jsonl",
        {"id": "1", "prompt": "x"},
        {"id": 1, "prompt": "a number is another id"},
        {"id": "1", "prompt": "y"},
    )
    first, second, third = read_items(path)
    assert isinstance(first, Item)
    assert isinstance(second, Item)
    assert third == Problem(3, 'the id "1" stands on line 1 already')


def test_a_missing_input_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        list(read_items(tmp_path / "none.jsonl"))


def test_finished_ids_are_skipped(tmp_path):
    source = write(tmp_path / "in", {"id": "a", "prompt": "x"}, {"id": "b", "prompt": "y"})
    target = write(tmp_path / "out", {"id": "a", "text": "", "quickmerge": {}})
    unfinished = plan(source, target)
    assert [item.id for item in unfinished] == ["b"]
    assert unfinished.problems == []
    assert unfinished.skipped == 1


def test_input_and_output_must_differ(tmp_path):
    path = write(tmp_path / "in", {"id": "a", "prompt": "x"})
    with pytest.raises(UserError, match="same file"):
        plan(path, tmp_path / "." / "in")


def test_a_torn_last_line_is_removed(tmp_path):
    path = write(tmp_path / "out", {"id": "a"}, '{"id": "b", "te', end="")
    assert finished_ids(path) == {'"a"'}
    assert path.read_text() == '{"id": "a"}\n'
    assert finished_ids(path) == {'"a"'}


def test_a_last_line_that_lacks_only_its_newline_stays(tmp_path):
    path = write(tmp_path / "out", {"id": "a"}, {"id": 2}, end="")
    assert finished_ids(path) == {'"a"', "2"}
    assert path.read_text().endswith('{"id": 2}\n')


def test_foreign_output_is_not_touched(tmp_path):
    path = write(tmp_path / "out", "notes of mine", {"id": "a"})
    with pytest.raises(UserError, match="line 1"):
        finished_ids(path)
    assert path.read_text().startswith("notes of mine\n")


def test_no_output_yet(tmp_path):
    assert finished_ids(tmp_path / "none") == set()


def finished(text, *, reason="stop", report=None):
    return SimpleNamespace(
        outputs=[SimpleNamespace(text=text, finish_reason=reason)],
        kv_transfer_params={"quickmerge": {"status": "compressed"} if report is None else report},
    )


def ready(*names):
    return [(Item(i, name, "x", None, {}), [1]) for i, name in enumerate(names, start=1)]


def test_results_are_written_in_order_and_in_batches():
    sizes, output = [], io.StringIO()

    def run(batch):
        sizes.append(len(batch))
        return [finished(item.id.upper()) for item, _ in batch]

    assert write_all(ready("a", "b", "c"), run, output, 2) == (3, [])
    assert sizes == [2, 1]
    lines = [json.loads(line) for line in output.getvalue().splitlines()]
    assert [line["text"] for line in lines] == ["A", "B", "C"]
    assert lines[0] == {"id": "a", "text": "A", "quickmerge": {"status": "compressed"}}


def test_one_refused_request_does_not_stop_its_batch():
    def run(batch):
        if any(item.id == "bad" for item, _ in batch):
            raise ValueError("too odd")
        return [finished("ok") for _ in batch]

    output = io.StringIO()
    written, problems = write_all(ready("a", "bad", "c"), run, output, 8)
    assert written == 2
    assert problems == [Problem(2, "vLLM refused the request: too odd")]


def test_failed_and_unreported_requests_are_problems():
    outputs = {"a": finished("", reason="error"), "b": finished("x")}
    outputs["b"].kv_transfer_params = None

    written, problems = write_all(
        ready("a", "b"), lambda batch: [outputs[item.id] for item, _ in batch], io.StringIO(), 8
    )
    assert written == 0
    assert "gave this request up" in problems[0].message
    assert "no quickmerge report" in problems[1].message


def test_a_dead_engine_ends_the_run_with_a_sentence():
    def run(batch):
        raise RuntimeError("EngineCore died")

    with pytest.raises(UserError, match="goes on from here"):
        write_all(ready("a"), run, io.StringIO(), 8)


def test_result_line_keeps_other_scripts_readable():
    line = result_line(Item(1, "ü", "x", None, {}), "日本", {})
    assert line == '{"id": "ü", "text": "日本", "quickmerge": {}}\n'


class Tokenizer:
    """Counts what it was asked for; a prompt of n words has n tokens."""

    chat_template = None

    def __init__(self):
        self.asked = 0

    def encode(self, text):
        self.asked += 1
        return list(range(len(text.split())))


def engine(tokenizer, limit=100):
    config = SimpleNamespace(model_config=SimpleNamespace(max_model_len=limit))
    return SimpleNamespace(get_tokenizer=lambda: tokenizer, llm_engine=config)


def test_a_large_input_is_not_read_ahead_more_than_a_batch(tmp_path):
    lines = [json.dumps({"id": i, "prompt": "one two"}) for i in range(10_000)]
    lines[5], lines[4000], lines[9000] = "nonsense", lines[1], json.dumps({"id": 0, "prompt": " "})
    source = write(tmp_path / "in", *lines)
    target = write(tmp_path / "out", *({"id": i} for i in range(64, 128)))
    longest = max(map(len, lines)) + 1
    unfinished, tokenizer, batches, refused = plan(source, target), Tokenizer(), [], []
    output = io.StringIO()

    def run(batch):
        done = sum(map(len, batches))
        assert tokenizer.asked <= done + len(batch)
        # Lines that are not run stand between: one bad, 64 finished, two of known ids.
        assert unfinished.position <= (done + len(batch) + 67) * longest
        assert output.getvalue().count("\n") == done  # what was run before is written
        batches.append([item.id for item, _ in batch])
        return [finished("ok") for _ in batch]

    ready = tokenised(engine(tokenizer), unfinished, refused)
    written, failed = write_all(ready, run, output, 64, unfinished)
    assert {len(batch) for batch in batches[:-1]} == {64}
    assert len({one for batch in batches for one in batch}) == written == 10_000 - 3 - 64
    assert failed == refused == []
    assert unfinished.skipped == 64
    assert unfinished.position == unfinished.size == source.stat().st_size
    assert [problem.line for problem in unfinished.problems] == [6, 4001, 9001]
    assert "stands on line 2 already" in unfinished.problems[1].message


def test_prompts_that_do_not_fit_fall_out_and_their_batch_is_filled_up():
    items = [
        Item(1, "a", "one", None, {}), Item(2, "long", "word " * 100, None, {}),
        Item(3, "empty", " ", None, {}),
        Item(4, "b", None, [{"role": "user", "content": "two words"}], {}),
    ]
    problems, sizes = [], []

    def run(batch):
        sizes.append(len(batch))
        return [finished("ok") for _ in batch]

    ready = tokenised(engine(Tokenizer()), items, problems)
    assert write_all(ready, run, io.StringIO(), 2) == (2, [])
    assert sizes == [2]
    assert [problem.line for problem in problems] == [2, 3]
    assert "the prompt has 100 tokens and the engine takes fewer than 100" in problems[0].message


def test_a_pipe_can_be_the_input(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    text = "".join(json.dumps({"id": i, "prompt": "x"}) + "\n" for i in range(3))
    writer = threading.Thread(target=pipe.write_text, args=(text,))
    writer.start()
    unfinished = plan(pipe, tmp_path / "out")
    ready = tokenised(engine(Tokenizer()), unfinished, [])
    output = io.StringIO()

    def run(batch):
        return [finished("x") for _ in batch]

    written, _ = write_all(ready, run, output, 2, unfinished)
    writer.join()
    assert (written, unfinished.size) == (3, None)
