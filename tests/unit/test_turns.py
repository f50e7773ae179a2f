"""Finding the turns of a conversation in token ids, and which of them stay whole."""

from __future__ import annotations

import pytest

from qm_vllm.config import ConfigError, QuickMergeConfig
from qm_vllm.engine.requests.chat_turns import ChatTurns
from qm_vllm.turns import kept_turns

SPECIAL = ("<s>", "<|start|>", "<|end|>", "<|head|>", "<|/head|>")


class WordTokenizer:
    """Words and special tokens are ids; ``style`` is a chat template."""

    def __init__(self, style):
        self.style, self.vocabulary = style, dict.fromkeys(SPECIAL)
        self.vocabulary = {word: i for i, word in enumerate(self.vocabulary)}
        self.chat_template = style.__name__ if style else None
        self.all_special_ids, self.bos_token_id = list(range(len(SPECIAL))), 0

    def encode(self, text, add_special_tokens=False):
        for token in SPECIAL:
            text = text.replace(token, f" {token} ")
        return [self.vocabulary.setdefault(w, len(self.vocabulary)) for w in text.split()]

    def apply_chat_template(self, messages, tokenize=False, add_generation_prompt=False):
        return self.style([(m["role"], m["content"]) for m in messages])

    def talk(self, *messages):
        return self.encode(self.style(list(messages)))


def chatml(messages):
    if messages[0][0] != "system":
        messages = [("system", "You are helpful."), *messages]
    return "".join(f"<|start|>{role}\n{text}<|end|>\n" for role, text in messages)


def headed(messages):
    """Like Llama 3: BOS, a date in the system's head, one end token for all."""
    return "<s>" + "".join(
        f"<|head|>{role}<|/head|>\n\n{'Today: 26 Jul ' if role == 'system' else ''}{text}<|end|>"
        for role, text in messages
    )


def no_system(messages):
    if messages[0][0] == "system":
        raise ValueError("System role not supported")
    return "<s>" + "".join(f"<|start|>{role}\n{text}<|end|>\n" for role, text in messages)


def merged_system(messages):
    """Like Gemma 3: the system's text is the head of the first user turn."""
    if messages[0][0] == "system":
        (_, first), (role, text), *rest = messages
        messages = [(role, f"{first}\n\n{text}"), *rest]
    return no_system(messages)


def plain_words(messages):
    return "".join(f"### {role}: {text}\n" for role, text in messages)


def broken(messages):
    raise KeyError("tools")


def roles_and_texts(style, *messages):
    tokenizer = WordTokenizer(style)
    turns = ChatTurns(tokenizer)
    assert turns.problem is None
    ids = tokenizer.talk(*messages)
    words = {i: word for word, i in tokenizer.vocabulary.items()}
    return [
        (role, " ".join(words[i] for i in ids[a:b] if i >= len(SPECIAL) and words[i] != role))
        for role, a, b in turns.find(ids)
    ]


TALK = (("user", "one two"), ("assistant", "three"), ("user", "four"))


@pytest.mark.parametrize("style", [headed, no_system, merged_system])
def test_turns_without_a_system_message(style):
    assert roles_and_texts(style, *TALK) == list(TALK)


def test_turns_with_a_system_message_or_a_default_one():
    for style in (chatml, headed):
        found = roles_and_texts(style, ("system", "be kind"), *TALK)
        date = "Today: 26 Jul " if style is headed else ""
        assert found == [("system", date + "be kind"), *TALK]
    assert roles_and_texts(chatml, *TALK)[0] == ("system", "You are helpful.")


def test_a_merged_system_message_is_part_of_the_users_turn():
    found = roles_and_texts(merged_system, ("system", "be kind"), *TALK)
    assert found == [("user", "be kind one two"), *TALK[1:]]


@pytest.mark.parametrize(("style", "words"), [
    (None, "no chat template"), (plain_words, "no special tokens"), (broken, "KeyError: 'tools'"),
])
def test_templates_without_marks_say_so(style, words):
    turns = ChatTurns(WordTokenizer(style))
    assert words in turns.problem
    assert turns.find([1, 2, 3]) == []


def test_no_tokenizer_at_all():
    assert ChatTurns(None).problem == "the model has no chat template"


TURNS = [("system", 0, 20), ("user", 20, 400), ("assistant", 400, 500), ("user", 500, 600)]


@pytest.mark.parametrize(("options", "num_tokens", "kept"), [
    ({}, 600, [0, 3]),                        # 120 <= 0.2 * 600
    ({"ratio": 0.3}, 600, [0]),               # the last user turn needs more than 90 - 20
    ({"ratio": 0.05}, 600, []),
    ({"ratio": 0.9, "max_kept": 100}, 600, [0]),
    ({"keep_roles": ()}, 600, []),
    ({"keep_roles": ("user",), "ratio": 0.1}, 600, [1, 3]),
    ({"keep_roles": "last_user,system", "ratio": 0.1}, 600, [0, 3]),
    ({"keep_roles": ["assistant"]}, 600, [2]),
])
def test_roles_that_stay(options, num_tokens, kept):
    assert kept_turns(QuickMergeConfig(**options), TURNS, num_tokens) == [TURNS[i] for i in kept]


def test_a_lone_user_turn_with_the_document_is_compressed():
    assert kept_turns(QuickMergeConfig(), [("system", 0, 9), ("user", 9, 900)], 900) == [
        ("system", 0, 9)
    ]


@pytest.mark.parametrize("value", ["bystander", ["system", 3], 7, {"system": 1}])
def test_unknown_roles_are_named(value):
    with pytest.raises(ConfigError, match=r"keep_roles=.*allowed: auto, none, or some of system"):
        QuickMergeConfig(keep_roles=value)
