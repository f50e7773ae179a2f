"""The clients' checks: what counts as a report, an option that took effect, a refusal."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from qm_vllm_eval.serving.clients import checks, harness

REPORT = {"status": "compressed", "ratio": 0.24, "source_tokens": 100, "kept_tokens": 24}
FIELD = {"kv_transfer_params": {"quickmerge": REPORT}}
METRICS = """# HELP qm_vllm:requests_total Requests by what became of them.
qm_vllm:requests_total{engine="0",model_name="smol",outcome="compressed"} 5.0
qm_vllm:fallbacks_total{engine="0",model_name="smol",reason="prompt_logprobs"} 2.0
qm_vllm:memo_hits_total{engine="0",model_name="smol"} 3.0
vllm:num_requests_running{engine="0",model_name="smol"} 1.0
"""


@pytest.mark.parametrize("answer", [
    FIELD, SimpleNamespace(**FIELD), SimpleNamespace(model_extra=FIELD),
])
def test_a_report_is_found_where_a_client_puts_it(answer):
    assert checks.told(answer) == REPORT
    assert checks.quarter(checks.told(answer)) == "100 -> 24 tokens"


@pytest.mark.parametrize("report", [
    None, REPORT | {"ratio": 0.4}, {"status": "untouched", "ratio": 0.2},
])
def test_an_option_without_effect_is_a_failure(report):
    with pytest.raises(AssertionError):
        checks.quarter(report)


def test_a_check_that_fails_is_a_line_and_the_others_run(capsys):
    def taken():
        return checks.refused(lambda: "an answer", ValueError)

    def refused():
        def call():
            raise ValueError("ratio=3 must be at most 1")

        return checks.refused(call, ValueError)

    checks.run("mine", {"taken": taken, "refused": refused})
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["check"], line["ok"]) for line in lines] == [("taken", False), ("refused", True)]
    assert "it was taken: an answer" in lines[0]["said"]


def test_counters_are_read_with_their_labels(monkeypatch):
    class Answer:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def read(self):
            return METRICS.encode()

    monkeypatch.setattr(harness.urllib.request, "urlopen", lambda *_, **__: Answer())
    assert harness.counts("http://server") == {
        "requests compressed": 5, "fallbacks prompt_logprobs": 2, "memo_hits": 3,
    }
