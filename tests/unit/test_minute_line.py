"""The plug-in's log line: once a minute, with everything since the last one."""

from __future__ import annotations

from qm_vllm.engine.requests import minute_line
from qm_vllm.engine.requests.minute_line import MinuteLine
from qm_vllm.engine.requests.tally import Tally


def test_one_line_a_minute_and_none_while_idle(vllm_log):
    now, tally = [0.0], Tally()
    line = MinuteLine(lambda: now[0])
    own = minute_line.logger.name

    def records():
        return [record for record in vllm_log.records if record.name == own]

    for second in range(0, 59, 2):
        now[0] = float(second)
        tally.compressed(1000, 385, 32)
        tally.level(jobs_waiting=2)
        line.observe(tally.take())
    assert not records()
    now[0] = 61.0
    tally.untouched("short")
    line.observe(tally.take())
    now[0] = 200.0
    line.observe(None)
    (said,) = {record.getMessage() for record in records()}
    assert "last 61 s: compressed requests 30, untouched requests 1" in said
    assert "source tokens 30,000, kept tokens 11,550" in said
    assert "untouched because: short 1; now jobs waiting 2" in said
