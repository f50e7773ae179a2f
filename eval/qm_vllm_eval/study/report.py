"""Everything that is made from a store: tables, figures, and the report."""

from __future__ import annotations

from pathlib import Path

from qm_vllm_eval.study.markdown import write_tables
from qm_vllm_eval.study.page import build_page
from qm_vllm_eval.study.plots import draw_all, write_pictures
from qm_vllm_eval.study.results import (
    failures,
    results_by_family,
    results_by_task,
    write_results,
)
from qm_vllm_eval.study.store import Store, StoreError

REPORT = "report.html"
PLOTS = "plots"


def write_report(store: Store, out: Path) -> list[Path]:
    """Write results.csv, families.csv, tables.md, plots/ (PNG, SVG) and report.html into ``out``.

    A store whose run is not finished is fine: what is there is shown. Returns the paths.

    Raises:
        StoreError: the store holds no row yet.
    """
    rows = store.rows()
    if rows.empty:
        raise StoreError(f"{store.folder} holds no row yet, so there is nothing to report")
    results, families = results_by_task(rows), results_by_family(rows)
    pictures = draw_all(families)
    written = write_results(results, families, out)
    written.append(write_tables(families, out))
    written += write_pictures(pictures, out / PLOTS)
    page = build_page(results, families, failures(rows), store.meta, pictures, rows=len(rows))
    target = out / REPORT
    target.write_text(page, encoding="utf-8")
    return [*written, target]
