"""The table of what heads gain, from a file that is made here."""

from __future__ import annotations

import pytest

from qm_vllm_eval.published import heads
from qm_vllm_eval.published.form import Unknown

LOSSES = {
    "none": (4.0, 5.0), "plain": (2.0, 1.0), "native": (2.5, 1.5), "kvpress-snapkv": (3.0, 3.0),
}


@pytest.fixture(autouse=True)
def _file(tmp_path, monkeypatch):
    (tmp_path / "heads").mkdir()
    lines = ["task,index,method,ratio,nll"]
    for method, losses in LOSSES.items():
        ratio = {"none": 0.0, "plain": 1.0}.get(method, 0.25)
        lines += [f"abstract,{i},{method},{ratio},{loss}" for i, loss in enumerate(losses)]
    (tmp_path / "heads" / "some-model.csv").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.setattr(heads, "STUDIES", tmp_path)


def test_retention_of_each_method_and_an_interval_of_ours():
    head, _, row, mean = heads.table("some-model", "1/4").splitlines()
    assert head == "| task | samples | layers, too | SnapKV |"
    # (4.5 - 2) / (4.5 - 1.5) and (4.5 - 3) / 3; of the samples alone 0.75 and 3.5 / 4.
    assert row == "| abstract | 2 | 0.83 [0.75, 0.88] | 0.50 |"
    assert mean == "| mean, each cut at 1 |  | 0.83 | 0.50 |"


def test_a_file_or_a_ratio_that_is_not_there_is_said():
    with pytest.raises(Unknown, match="other"):
        heads.table("other", "1/4")
    with pytest.raises(Unknown, match="1/3"):
        heads.table("some-model", "1/3")
