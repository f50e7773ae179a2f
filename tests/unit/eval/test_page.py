"""The report of a study: complete, escaped, and on its own."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from qm_vllm_eval.study.report import write_report
from qm_vllm_eval.study.store import Store, StoreError
from tests.unit.eval.study_rows import failed, study

VOID = {"meta", "input", "br", "img", "link"}


class Checker(HTMLParser):
    """Collects tags, attributes that load something, ids; checks that tags are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.targets: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "srcset", "data", "action", "poster"):
                (self.targets if (value or "").startswith("#") else self.loads).append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], str]:
    folder = tmp_path_factory.mktemp("study")
    store = Store.open(
        folder, {"model": "small<model>", "dtype": "float32"},
        {"started": "2026-01-02T03:04:05+00:00", "commit": {"id": "abcdef" * 7, "dirty": True},
         "hardware": {"cpu": "A processor", "cores": 2, "memory_mib": 4096, "gpus": []},
         "methods": {"quickmerge": "Merges & keeps <most>."}},
    )
    store.add(study())
    store.add(study(query_visible=True)[:-6])
    store.add([failed("peer", 0.25, index, "no </script> here") for index in range(4)])
    paths = write_report(store, folder / "out")
    return paths, paths[-1].read_text(encoding="utf-8")


def test_all_files_are_written(report: tuple[list[Path], str]) -> None:
    paths, _ = report
    assert [path.name for path in paths[:2]] == ["results.csv", "families.csv"]
    assert paths[-1].name == "report.html"
    assert len(paths) == 4 + 2 * 4
    assert all(path.stat().st_size for path in paths)


def test_page_is_well_formed_and_refers_to_nothing(report: tuple[list[Path], str]) -> None:
    page = report[1]
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert checker.loads == []
    assert not re.search(r"https?://|@import|url\((?!#)", page)
    assert len(checker.ids) == len(set(checker.ids))
    assert {target[1:] for target in checker.targets} <= set(checker.ids)


def test_page_says_what_was_measured(report: tuple[list[Path], str]) -> None:
    page = report[1]
    for text in (
        "small&lt;model&gt;", "A processor, 2 cores, 4 GiB", "abcdefabcdef with changes",
        "Merges &amp; keeps &lt;most&gt;.", "has not ended", "no &lt;/script&gt; here",
        "1,000 tokens, question hidden", "1,000 tokens, question visible",
    ):
        assert text in page
    assert page.count("</script>") == 2


def test_table_of_retention(report: tuple[list[Path], str]) -> None:
    page = report[1]
    assert "retention 0.750, 95 % interval 0.750 to 0.750; kept 50.0%" in page
    assert '<td class="neg" style="--v:100"' in page
    assert ">−1.00</td>" in page
    assert re.search(r'class="best" style="--v:50" [^>]*>0.50</td>', page)
    assert re.search(r">0.75\*</td>", page) is None
    assert 'title="peer, retrieval: no &lt;/script&gt; here">–</td>' in page
    assert re.findall(r'data-ratio="([^"]*)"', page) == ["0.25", "0.5"]


def test_data_of_the_full_table(report: tuple[list[Path], str]) -> None:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', report[1])
    assert found
    data = json.loads(found.group(1))
    assert len(data["kinds"]) == len(data["classes"]) == len(data["rows"][0]) == 17
    assert len(data["rows"]) == 11
    assert next(row for row in data["rows"] if row[4] == "peer")[-1] == "no </script> here"


def test_a_store_with_references_only(tmp_path: Path) -> None:
    store = Store.open(tmp_path, {"model": "m"})
    with pytest.raises(StoreError, match="no row"):
        write_report(store, tmp_path)
    store.add([row for row in study() if row.method == "none"])
    assert write_report(store, tmp_path)[-1].exists()
