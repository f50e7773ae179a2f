"""Pictures of the results: ``python benchmarks/plots.py`` reads and writes benchmarks/results.

ttft.png: time to first token against N, one panel a machine, with the break-even. throughput.png:
prompt tokens per second against N, one request at a time and at saturation. scaling.png: time of
the scores, of a whole prefill and of compressing, and memory, with their exponents of N.
"""

from __future__ import annotations

from typing import Any

import matplotlib

from qm_vllm_eval.published.stored import (
    HERE,
    Rows,
    break_even,
    compression_ms,
    load,
    machines,
    prefills,
    slope,
)

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PLAIN, OURS, SOFT = "#6b6b6b", "#c2410c", "#9a9a9a"


def even(rows: Rows) -> float | None:
    """The length from which compressing is not slower; None: nowhere here, or at the first."""
    lengths = [row["n"] for row in rows]
    found = break_even(
        lengths, [r["plain_ttft_s"] for r in rows], [r["quickmerge_ttft_s"] for r in rows]
    )
    return None if found in (None, lengths[0]) else found


def spread(row: dict[str, Any], key: str, middle: float) -> tuple[float, float]:
    """How far the fastest and the slowest run are from the median."""
    runs = row.get("runs", {}).get(key, [middle])
    return middle - min(runs), max(runs) - middle


def curves(panel: Any, rows: Rows, value: Any) -> None:
    """Plain and compressed over N, with spreads, and the break-even."""
    lengths = [row["n"] for row in rows]
    for key, colour, label in (
        ("plain", PLAIN, "plain vLLM"), ("quickmerge", OURS, "compressed"),
    ):
        middles = [row[f"{key}_ttft_s"] for row in rows]
        low, high = zip(*(
            spread(row, f"{key}_s", middle) for row, middle in zip(rows, middles, strict=True)
        ), strict=True)
        points = [value(n, s) for n, s in zip(lengths, middles, strict=True)]
        at_low = [value(n, s - a) for n, s, a in zip(lengths, middles, low, strict=True)]
        at_high = [value(n, s + b) for n, s, b in zip(lengths, middles, high, strict=True)]
        ends = [
            [p - min(a, b) for p, a, b in zip(points, at_low, at_high, strict=True)],
            [max(a, b) - p for p, a, b in zip(points, at_low, at_high, strict=True)],
        ]
        panel.errorbar(lengths, points, yerr=ends, color=colour, marker="o", capsize=3, label=label)
    found = even(rows)
    if found:
        panel.axvline(found, color=SOFT, linestyle="--")
        panel.text(found, 0.03, f" break-even {found:,.0f}", color=SOFT, fontsize=8,
                   transform=panel.get_xaxis_transform())
    panel.set_xscale("log", base=2)
    panel.set_xticks(lengths, [f"{n:,}" for n in lengths])
    panel.set_xlabel("prompt tokens N")


def panels(count: int) -> tuple[Any, list[Any]]:
    """A figure of some panels in a row."""
    figure, found = plt.subplots(1, count, figsize=(4.6 * count, 3.8), squeeze=False)
    return figure, list(found[0])


def save(figure: Any, name: str) -> None:
    """Write it beside the results."""
    figure.tight_layout()
    figure.savefig(HERE / name, dpi=110)
    plt.close(figure)
    print(HERE / name)


def title(machine: str) -> str:
    """What a panel shows."""
    said = load(machine, "prefill")
    return f"{said.get('gpu', said.get('cpu'))}\n{said.get('model')}, {said.get('dtype')}"


def draw_ttft(machines: list[str]) -> None:
    """ttft.png."""
    figure, found = panels(len(machines))
    for panel, machine in zip(found, machines, strict=True):
        rows = prefills(machine)
        curves(panel, rows, lambda n, s: s)
        for row in rows:
            panel.annotate(f"{row['speedup']:.2f}x", (row["n"], row["quickmerge_ttft_s"]),
                           textcoords="offset points", xytext=(6, -12), fontsize=8, color=OURS)
        panel.set_yscale("log")
        panel.set_title(title(machine), fontsize=9)
        panel.set_ylabel("time to first token, s")
        panel.legend(fontsize=8)
    save(figure, "ttft.png")


def draw_throughput(machines: list[str]) -> None:
    """throughput.png."""
    figure, found = panels(len(machines))
    for panel, machine in zip(found, machines, strict=True):
        curves(panel, prefills(machine), lambda n, s: n / s)
        for name in sorted(p.stem for p in (HERE / machine).glob("saturation*.json")):
            said = load(machine, name)
            for row, colour in zip(said.get("saturation", []), (PLAIN, OURS), strict=False):
                n = round(row["prompt tokens/s"] / row["requests/s"])
                panel.plot(n, row["prompt tokens/s"], marker="*", markersize=13, color=colour,
                           linestyle="", label=f"{row['case']}, full cache, with decoding")
        panel.set_title(title(machine), fontsize=9)
        panel.set_ylabel("prompt tokens/s")
        panel.set_ylim(bottom=0)
        panel.legend(fontsize=7)
    save(figure, "throughput.png")


def draw_scaling(machine: str) -> None:
    """scaling.png."""
    figure, (times, whole, memory) = panels(3)
    rows = load(machine, "saliency").get("rows", [])
    for key in dict.fromkeys((r["score"], r["D"], r["dtype"]) for r in rows):
        same = [r for r in rows if (r["score"], r["D"], r["dtype"]) == key]
        line(times, [r["N"] for r in same], [r["ms"] for r in same], f"{key[0]}, D = {key[1]}")
    times.set_title("scores, two cores", fontsize=9)
    times.set_ylabel("ms")
    rows = prefills(machine)
    lengths = [r["n"] for r in rows]
    line(whole, lengths, [1e3 * r["plain_ttft_s"] for r in rows], "plain prefill")
    line(whole, lengths, [1e3 * r["quickmerge_ttft_s"] for r in rows], "compressed prefill")
    line(whole, lengths, [compression_ms(r) for r in rows], "score, choose and merge")
    whole.set_title("a prefill", fontsize=9)
    whole.set_ylabel("ms")
    rows = load(machine, "memory").get("rows", [])
    for name in ("job", "plain"):
        line(memory, [r["N"] for r in rows], [r[f"{name} MiB"] for r in rows], name)
    line(memory, [r["N"] for r in rows], [r["bound MiB"] for r in rows], "bound", exponent=False)
    memory.set_title("memory beside the KV cache", fontsize=9)
    memory.set_ylabel("MiB")
    for panel in (times, whole, memory):
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_xlabel("prompt tokens N")
        panel.legend(fontsize=7)
    save(figure, "scaling.png")


def line(panel: Any, lengths: list[int], values: list[float], label: str, *,
         exponent: bool = True) -> None:
    """One curve, its exponent of N in the legend."""
    if values:
        more = f": N^{slope(lengths, values):.2f}" if exponent and len(values) > 1 else ""
        panel.plot(lengths, values, marker="o", label=label + more)


def main() -> None:
    timed = [machine for machine in machines() if prefills(machine)]
    draw_ttft(timed)
    draw_throughput(timed)
    for machine in timed:
        if load(machine, "saliency"):
            draw_scaling(machine)


if __name__ == "__main__":
    main()
