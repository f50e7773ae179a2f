"""Input lines, resuming and batches of ``qm-vllm generate``, without an engine."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace

import pytest

from qm_vllm.cli.batch_lines import Item, Problem, finished_ids, read_items, result_line
from qm_vllm.cli.generate import plan, write_all
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
    items, problems, skipped = plan(source, target)
    assert [item.id for item in items] == ["b"]
    assert problems == []
    assert skipped == 1


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
