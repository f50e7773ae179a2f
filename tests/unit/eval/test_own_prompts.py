"""A user's own prompts: lines of a file, and what becomes of them as samples."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from qm_vllm.errors import UserError
from qm_vllm_eval.own.line import LineRefused, parse_line
from qm_vllm_eval.own.prompts import Reading, own_prompt, read_prompts, window_of
from qm_vllm_eval.prompt import Prompt, bare_prompt_ids, prompt_parts
from tests.unit.eval.own_fakes import Words, write
from tests.unit.eval.tokenizers import embedded_tokenizer

SYSTEM = {"role": "system", "content": "Be brief."}
ASKED = {"role": "user", "content": "Long text."}


def line(**fields):
    return parse_line(1, json.dumps(fields))


def test_what_a_line_may_hold():
    given = line(prompt="a text", question=" What? ", answer="it", id=7, quickmerge=None)
    assert (given.text, given.question, given.answers) == ("a text", "What?", ("it",))
    assert (given.turns, given.is_chat) == ((), False)
    chat = line(messages=[SYSTEM, ASKED], answer=["one", "two "])
    assert chat.turns == (("system", "Be brief."),)
    assert (chat.text, chat.answers, chat.is_chat) == ("Long text.", ("one", "two"), True)
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert line(messages=[{"role": "user", "content": parts}]).text == "a\nb"
    bare = line(prompt="a", question=None, answer=None, messages=None)
    assert (bare.question, bare.answers) == ("", ())


@pytest.mark.parametrize(("raw", "reason"), [
    ('{"prompt": "cut', "not valid JSON (Unterminated string starting at column 12)"),
    ('{"prompt": "a", "prompt": "b"}', "the field 'prompt' stands there twice"),
    ("[1]", "not a JSON object"),
    ("{}", 'needs either "prompt" or "messages"'),
    ('{"prompt": "a", "messages": []}', 'needs either "prompt" or "messages"'),
    ('{"text": "a", "answer": "b"}', 'needs either "prompt" or "messages"'),
    ('{"prompt": " "}', '"prompt" must be a text that is not empty'),
    ('{"prompt": ["a"]}', '"prompt" must be a text'),
    ('{"prompt": "\\ud83d"}', "half of a surrogate pair"),
    ('{"messages": []}', '"messages" must be a list that is not empty'),
    ('{"messages": ["a"]}', 'needs a "role" and a "content"'),
    ('{"messages": [{"role": "user"}]}', '"content" must be a text'),
    ('{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', "texts alone"),
    ('{"messages": [{"role": "assistant", "content": "a"}]}', "the last message must be the user"),
    ('{"messages": [{"role": "assistant", "content": "a", "tool_calls": [{}]}]}', "tool calls"),
    ('{"prompt": "a", "question": ""}', '"question" must be a text that is not empty'),
    ('{"prompt": "a", "answer": ""}', "leave it out to measure against the model's own"),
    ('{"prompt": "a", "answer": []}', '"answer" is empty'),
    ('{"prompt": "a", "answer": ["b", " "]}', '"answer" must be a text that is not empty'),
    ('{"prompt": "a", "answer": 7}', '"answer" must be a text or a list of texts'),
])
def test_a_bad_line_says_why(raw, reason):
    with pytest.raises(LineRefused) as refused:
        parse_line(1, raw)
    assert reason in str(refused.value)


def test_the_rest_of_a_file_is_used(tmp_path):
    file = write(tmp_path / "mine.jsonl", [
        {"prompt": "one two three"}, "{", "", {"prompt": "a", "answer": ""},
        {"prompt": "four five", "answer": "six"}, {"prompt": "word " * 300},
    ])
    found, problems = read_prompts(file, Words(), Reading(answer_tokens=8, window=200))
    assert [one.sample.sample_id for one in found] == [
        "own_answers-0-report-0", "given_answers-0-report-4"
    ]
    assert sorted(problems) == [2, 4, 6]
    assert problems[6] \
        == "has 303 tokens, and with 8 for an answer that is more than the model's window of 200"


def test_a_file_without_a_usable_line_is_one_error(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*No such file"):
        read_prompts(tmp_path / "none.jsonl", Words(), Reading())
    empty = write(tmp_path / "empty.jsonl", [])
    with pytest.raises(UserError, match=r"no prompt that can be used \(it is empty"):
        read_prompts(empty, Words(), Reading())
    bad = write(tmp_path / "bad.jsonl", ["{}"] * 12)
    with pytest.raises(UserError, match=r"line 1: needs either .* line 8: .*; and 4 more\)"):
        read_prompts(bad, Words(), Reading())


def test_prompts_below_the_servers_least_are_left_out(tmp_path):
    file = write(tmp_path / "mine.jsonl", [{"prompt": "a b"}, {"prompt": "a b c d e f g"}])
    found, problems = read_prompts(file, Words(), Reading(fewest=6))
    assert [one.sample.index for one in found] == [1]
    assert "prompts of fewer than 6 are not compressed" in problems[1]


def test_a_given_answer_is_the_target_and_has_room():
    asked = own_prompt(line(prompt="a text", question="Why?", answer=["so", "because of it"]),
                       Words(), Reading(chat=False))
    sample = asked.sample
    assert (sample.task, sample.metric, sample.target) == ("given_answers", "f1", " so")
    assert (sample.question, sample.answers) == ("\n\nWhy?", ("so", "because of it"))
    assert asked.reply == sample.max_new_tokens == 24
    long = own_prompt(line(prompt="a", answer="w " * 40), Words(), Reading())
    assert long.reply == 56  # 1.3 * 40 + 4


def test_a_conversation_is_what_the_chat_template_makes_of_it():
    tokenizer = embedded_tokenizer()
    turns = [SYSTEM, {"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Yes?"}]
    for question in (None, "And why?"):
        sample = own_prompt(line(messages=[*turns, ASKED], question=question), tokenizer,
                            Reading()).sample
        whole = [*turns, {**ASKED, "content": "Long text." + (f"\n\n{question}" if question
                                                              else "")}]
        wanted = tokenizer.apply_chat_template(whole, tokenize=False, add_generation_prompt=True)
        context, asked, _ = prompt_parts(sample, tokenizer)
        assert tokenizer.decode([*context, *asked]) == wanted
        bare = tokenizer.decode(bare_prompt_ids(sample, tokenizer))
        assert "Hi." not in bare
        assert "Long" not in bare
        assert ("And why?" in bare) == (question is not None)


def test_a_prompt_is_a_users_turn_or_plain_text():
    tokenizer = embedded_tokenizer()
    one = line(prompt="Tell of mills.")
    turn = own_prompt(one, tokenizer, Reading()).sample
    raw = own_prompt(one, tokenizer, Reading(chat=False)).sample
    assert "<|im_start|>user\nTell of mills." in tokenizer.decode(Prompt.of(turn, tokenizer).ids)
    assert tokenizer.decode(Prompt.of(raw, tokenizer).ids) == "Tell of mills."


def test_without_a_template_turns_are_joined_as_text():
    sample = own_prompt(line(messages=[SYSTEM, ASKED]), Words(), Reading()).sample
    tokenizer = Words()
    context, asked, _ = prompt_parts(sample, tokenizer)
    assert len(context) == 5  # BOS, two words of each turn
    assert len(asked) == 1


def test_a_template_that_refuses_is_a_reason(tmp_path):
    tokenizer = embedded_tokenizer()

    class Strict:
        chat_template = "{{ raise_exception('roles must alternate') }}"
        encode = staticmethod(tokenizer.encode)
        bos_token_id = None

        def apply_chat_template(self, *_, **__):
            raise ValueError("roles must alternate")

    file = write(tmp_path / "mine.jsonl", [{"messages": [ASKED]}])
    with pytest.raises(UserError, match="chat template refuses the messages: roles must alter"):
        read_prompts(file, Strict(), Reading())


def test_ids_of_an_answer_are_the_target_as_they_are():
    sample = own_prompt(line(prompt="a b"), Words(), Reading()).sample
    said = replace(sample, target="other text", target_ids=(9, 8, 7))
    assert Prompt.of(said, Words()).target == [9, 8, 7]


def test_the_window_of_a_model(tmp_path):
    from qm_vllm.assets.embedded import ensure_model

    assert window_of(str(ensure_model())) == 8192
    with pytest.raises(UserError, match="the model cannot be read"):
        window_of(str(tmp_path / "nowhere"))
