"""Short tables of speed: all machines side by side, and what is of a GPU alone."""

from __future__ import annotations

from typing import Any

from qm_vllm_eval.published.form import Row, markdown
from qm_vllm_eval.published.speed import number, seconds
from qm_vllm_eval.published.stored import load, machines, prefills

PHASES = ("encoder", "saliency", "merge", "upper", "other")


def prefill() -> str:
    """Time to first token of every machine at the default depth and a third kept."""
    table: list[Row] = []
    for machine in machines():
        content = load(machine, "prefill")
        what = [str(content[name]) for name in ("model", "dtype") if content.get(name)]
        for row in prefills(machine):
            table.append({
                "machine": content.get("gpu") or f"{content['cpu']}, {content['cores']} cores",
                "model": f"{', '.join(what)}, {'eager' if content['eager'] else 'compiled'}",
                "N": f"{row['n']:,}", "kept": f"{row['kept']:,}",
                "plain TTFT": seconds(row["plain_ttft_s"]),
                "compressed TTFT": seconds(row["quickmerge_ttft_s"]),
                "speed-up": number(row["speedup"]), "date": content["date"],
            })
    return markdown(table)


def shares(machine: str) -> str:
    """A machine's prefills with the share of each phase of the compressed request."""
    return markdown([
        {
            "n": f"{row['n']:,}", "kept": f"{row['kept']:,}",
            "plain TTFT": f"{1e3 * row['plain_ttft_s']:,.0f} ms",
            "compressed TTFT": f"{1e3 * row['quickmerge_ttft_s']:,.0f} ms",
            "speed-up": number(row["speedup"]), "limit": number(row["flop_limit"]),
            **{phase: f"{row[f'share_{phase}']:.2f}".lstrip("0") for phase in PHASES},
        }
        for row in prefills(machine)
    ])


def entropy(machine: str) -> str:
    """The entropy by torch's tiles and by the Triton kernel."""
    content = load(machine, "entropy")
    gemm, before = content["floor"]["gemm_tflops"], content["before_triton"]
    error = f"{content['entropy_error_bfloat16']:.1e}".replace("e-0", "e-")
    table: list[dict[str, Any]] = []
    for length in (8192, 32768):
        tiles, kernel = (held[f"entropy_ms_{length}"] for held in (before, content))
        middle, low, high = kernel["ms"]
        table.append({
            "N": f"{length:,}", "D": "4,096",
            "tiles by torch in float32": f"{tiles['ms'][0]:.1f} ms, {tiles['tflops']:.0f} TFLOP/s",
            "one Triton kernel":
                f"{middle:.2g} ms ({low:.2g}-{high:.2g}), {kernel['tflops']:.0f} TFLOP/s"
                if length == 8192 else
                f"{middle:.1f} ms ({low:.1f}-{high:.1f}), {kernel['tflops']:.0f} TFLOP/s",
            "of the GEMM rate": number(kernel["tflops"] / gemm),
            "largest relative error": error,
        })
    return markdown(table)
