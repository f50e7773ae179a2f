"""Tables and figures of the other runs: paired differences, budgets, Ego4D, BookSum, the paper."""

from __future__ import annotations

import csv
import functools
import json
from typing import Any

from qm_vllm_eval.ego4d.report import markdown as moments
from qm_vllm_eval.paper.compare import read_csv
from qm_vllm_eval.published.form import Row, Unknown, figure, markdown
from qm_vllm_eval.published.stored import ROOT, STUDIES, break_even, load, noted, prefills, row_at

RATIOS = {"0.4167": "1/2.4", "0.25": "1/4"}
ROUGE = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L", "rougeLsum": "ROUGE-Lsum"}


@functools.cache
def _json(path: str) -> Any:
    return json.loads((ROOT / path).read_text(encoding="utf-8"))


def _csv(path: str) -> list[dict[str, str]]:
    with (STUDIES / path).open(encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def paired() -> str:
    """Differences of retention from quickmerge on the same samples (paired.csv of the prior)."""
    table: dict[tuple[str, str], Row] = {}
    for row in _csv("smollm2-prior/paired.csv"):
        line = table.setdefault((row["ratio"], row["method"]), {
            "ratio": RATIOS[row["ratio"]], "method": row["method"]})
        middle, low, high = (f"{float(row[name]):+.3f}" for name in ("difference", "low", "high"))
        line[row["family"]] = f"{middle} ({low} to {high})"
    return markdown(list(table.values()))


def adaptive() -> str:
    """Retention of each policy over the mean share of the prompts (policies.csv)."""
    held = _csv("adaptive/policies.csv")
    shares = [row["share"] for row in held if row["policy"] == "fixed"]
    table = []
    for policy in dict.fromkeys(row["policy"] for row in held):
        own = [row["retention"] for row in held if row["policy"] == policy]
        table.append({"policy": policy, **{
            share: figure(float(text))
            for share, text in zip(shares, own, strict=True)
        }})
    return markdown(table)


def ego4d() -> str:
    """comparison.json of the synthetic set."""
    return moments(_json("eval/results/ego4d-synthetic/comparison.json"))


def ego4d_value(way: str, ratio: str, metric: str, part: str = "mean", form: str = ".2f") -> str:
    """A figure of that comparison; ``metric`` is the beginning of its name, as ``R@5-0.3``."""
    for line in _json("eval/results/ego4d-synthetic/comparison.json"):
        if line["way"] == way and abs(line["ratio"] - float(ratio)) < 1e-3:
            for name, held in line.items():
                if name.replace(" IoU>", "-").startswith(metric):
                    return figure(held[part], form)
    raise Unknown(f"no {metric} of {way} at {ratio}")


def booksum() -> str:
    """summary.json of the micro-set."""
    table = []
    for part in _json("eval/results/booksum-micro/summary.json")["ratios"]:
        means = part["means"]
        table.append({
            "": "plain vLLM" if part["ratio"] == 1 else f"ratio {part['ratio']:g}",
            "rows": part["rows"],
            **{title: "{mean:.3f} ({low:.3f}-{high:.3f})".format(**part["metrics"][name])
               for name, title in ROUGE.items()},
            "N": f"{means['source_tokens']:,.0f}", "K": f"{means['kept_tokens']:,.0f}",
            "KV MiB": f"{means['kv_bytes'] / 2**20:.1f}",
            "seconds a row": f"{means['seconds']:.1f}",
        })
    return markdown(table)


def paper_value(run: str, table: str, row: str, column: str, form: str = ".1f") -> str:
    """A figure of ``paper/<run>/table<table>.csv``; ``row`` is a method, or shape and method."""
    for held in read_csv(STUDIES / "paper" / run / f"table{table}.csv"):
        if row in (held["method"], f"{held.get('shape')} {held['method']}"):
            if held.get(column) is None:
                break
            return figure(held[column], form)
    raise Unknown(f"paper/{run}/table{table}.csv has no {column} of {row}")


def file_value(path: str, *keys: str) -> str:
    """A figure of any JSON file: its path, keys or places in lists, perhaps a format at the end."""
    found, form = _json(path), ".2f"
    for key in keys:
        try:
            found = found[int(key)] if isinstance(found, list) else found[key]
        except (KeyError, IndexError, ValueError, TypeError):
            if key is not keys[-1]:
                raise Unknown(f"{path} has no {' '.join(keys)}") from None
            form = key
    if isinstance(found, dict | list):
        raise Unknown(f"{path}, {' '.join(keys)} is no figure")
    return figure(found, form)


def bench_value(file: str, length: str, column: str, form: str = ".2f") -> str:
    """A figure of a benchmark's row: ``machine/name``, prompt length, column."""
    machine, _, name = file.partition("/")
    row = row_at(machine, name, length)
    if column not in row:
        raise Unknown(f"{file}.json has no {column} at {length}")
    return figure(row[column], form)


def first_value(machine: str, way: str, *lengths: str) -> str:
    """Times to first token over plain vLLM's, of a way to serve, by prompt length."""
    held = {str(row["N"]): row for row in load(machine, "first_token")["rows"] if row["way"] == way}
    if missing := set(lengths) - set(held):
        raise Unknown(f"{machine}/first_token.json has no {way} at {', '.join(sorted(missing))}")
    return ", ".join(figure(held[length]["ttft / plain"]) for length in lengths)


def way_value(file: str, part: str, way: str, column: str, form: str = ".2f") -> str:
    """A figure of one way to serve: ``machine/name``, a scenario or a prompt length, column."""
    machine, _, name = file.partition("/")
    for row in load(machine, name)["rows"]:
        if row["way"] == way and part in (row.get("scenario"), str(row.get("N"))):
            return figure(row[column], form)
    raise Unknown(f"{file}.json has no {way} of {part}")


def phase_value(file: str, length: str, section: str, form: str = ".2f") -> str:
    """Seconds of one part of a compressed prefill; ``all``: of all of them."""
    machine, _, name = file.partition("/")
    held = [row for row in load(machine, name)["rows"] if str(row["N"]) == length]
    if section == "all":
        return figure(sum(row["seconds"] for row in held), form)
    for row in held:
        if row["section"] == section:
            return figure(row["seconds"], form)
    raise Unknown(f"{file}.json has no part '{section}' at {length}")


def times_plain(file: str, case: str = "1", form: str = ".2f") -> str:
    """Requests a second of a case at saturation against the first one's."""
    machine, _, name = file.partition("/")
    content = load(machine, name)
    rows = content.get("saturation") or content["rows"]
    return figure(rows[int(case)]["requests/s"] / rows[0]["requests/s"], form)


def even(machine: str) -> str:
    """The length from which a compressed prefill is not slower, to ten tokens."""
    rows = prefills(machine)
    found = break_even([row["n"] for row in rows], *(
        [row[f"{name}_ttft_s"] for row in rows] for name in ("plain", "quickmerge")
    )) if rows else None
    if found is None:
        raise Unknown(f"{machine} has no break-even")
    return f"{found:,.0f}"


def noted_value(name: str, *keys: str) -> str:
    """A figure that was noted: its keys, or a place among the rows and a column."""
    held: Any = noted(name)
    for key in keys:
        held = held[int(key)] if isinstance(held, list) else held.get(key)
    if held is None or isinstance(held, dict | list):
        raise Unknown(f"nothing is noted as {name} {' '.join(keys)}")
    return str(held)


def noted_table(name: str) -> str:
    """Rows that were noted, and where they are from."""
    held = noted(name)
    return f"{held['source']}\n\n{markdown(held['rows'])}"
