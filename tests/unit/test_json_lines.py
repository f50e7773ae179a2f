"""One line of JSON, read strictly, and texts that no encoding has."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qm_vllm.json_lines import parse
from qm_vllm.texts import half_pair, json_bytes

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20,
)


@given(VALUES, st.sampled_from(["", "\ufeff"]), st.sampled_from(["", "\n", "\r\n"]))
def test_what_json_writes_comes_back(value, mark, end):
    assert parse((mark + json.dumps(value) + end).encode()) == value
    assert parse(json_bytes(json.dumps(value, ensure_ascii=False))) == value


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"a": 1', "Expecting ',' delimiter at column 8"),
        (b'{"a": "cut', "Unterminated string starting at column 7"),
        (b"", "Expecting value at column 1"),
        (b'{"a": NaN}', "NaN is no number in JSON"),
        (b'{"a": [-Infinity]}', "-Infinity is no number in JSON"),
        (b'{"a": 1, "a": 2}', "the field 'a' stands there twice"),
        (b'{"x": [{"role": "user", "role": "system"}]}', "the field 'role' stands there twice"),
        (b'{"a": "\xff"}', "byte 8 is not UTF-8"),
        (b'{"a": "\xed\xa0\xbd"}', "byte 8 is not UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "byte 1 is not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b"1" * 5_000, "Exceeds the limit"),
    ],
)
def test_what_is_no_json_is_told_with_its_place(line, message):
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        parse(line)


def test_nan_where_it_is_allowed():
    assert parse(b'[NaN, Infinity, 1]', nan=True)[1:] == [float("inf"), 1]


def test_a_long_line_takes_time_by_its_length():
    def seconds(size):
        line = json.dumps({"id": 1, "prompt": "x\\n\u20ac" * size}).encode()
        started = time.process_time()
        parse(line)
        return time.process_time() - started

    seconds(1000)
    short, long = min(seconds(100_000) for _ in range(3)), seconds(1_600_000)
    assert long < 16 * 8 * max(short, 1e-3)  # quadratic would be 256 times


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", ""),
        ("\U0001f600 whole", ""),
        ("ab\ud83d", "half of a surrogate pair (\\ud83d) at character 3"),
        ("\ude00\ud83d", "half of a surrogate pair (\\ude00) at character 1"),
    ],
)
def test_halves_of_surrogate_pairs(text, found):
    assert half_pair(text) == found
