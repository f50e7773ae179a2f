"""Tables of the benchmarks.

Every file of ``benchmarks/results/<machine>/`` whose name begins with that of a benchmark is one
or more tables.
"""

from __future__ import annotations

from collections.abc import Callable

from qm_vllm_eval.published import stored
from qm_vllm_eval.published.form import Row, markdown
from qm_vllm_eval.published.stored import exponents, load, machines


def seconds(value: float) -> str:
    """With its unit, three digits."""
    return f"{1e3 * value:.3g} ms" if value < 1 else f"{value:.3g} s"


def span(row: Row, name: str) -> str:
    """Fastest and slowest run, where the file has them."""
    runs = row.get("runs", {}).get(name)
    return f" ({seconds(min(runs))} - {seconds(max(runs))})" if runs else ""


def number(value: float) -> str:
    """Two decimals."""
    return f"{value:.2f}"


def prefill(content: Row) -> list[Row]:
    """prefill.py."""
    return [
        {
            "mode": "eager" if content["eager"] else "compiled",
            "ratio": row.get("ratio", content.get("ratio")),
            "E": f"{row['encoder_layers']} of {row['num_layers']}",
            "N": f"{row['n']:,}", "kept": f"{row['kept']:,}",
            "plain TTFT": seconds(row["plain_ttft_s"]) + span(row, "plain_s"),
            "compressed TTFT": seconds(row["quickmerge_ttft_s"]) + span(row, "quickmerge_s"),
            "speed-up": number(row["speedup"]), "limit, linear layers": number(row["flop_limit"]),
            "limit with attention": number(row["work_limit"]) if "work_limit" in row else "",
            "of that": number(row["of_limit"]) if "work_limit" in row else "",
            "scoring and merging of plain":
                f"{100 * row['scoring_of_plain']:.1f} %" if "scoring_of_plain" in row else "",
        }
        for row in content["rows"]
    ]


def encoder(content: Row) -> list[Row]:
    """encoder.py."""
    return [
        {
            "N": f"{row['N']:,}", "vLLM": row["vLLM"], "vLLM's layers": seconds(row["vLLM s"]),
            "ours": seconds(row["ours s"]),
            "ours / vLLM": f"{row['ours / vLLM']:.2f} ({row['lowest']:.2f} - {row['highest']:.2f})",
            "products and attention alone": seconds(row["bare s"]) if "bare s" in row else "",
            "of ours": number(row["bare / ours"]) if "bare s" in row else "",
        }
        for row in content["rows"]
    ]


def memory(content: Row) -> list[Row]:
    """memory.py, MiB."""
    return [
        {
            "N": f"{row['N']:,}", "K": f"{row['K']:,}",
            **{name: f"{row[name]:.0f}" for name in (
                "job MiB", "plain MiB", "E/L of plain KV MiB", "bound MiB")},
            "within": "yes" if row["within"] else "no",
        }
        for row in content["rows"]
    ]


def saliency(content: Row) -> list[Row]:
    """saliency.py: exponents, and the longest prompts."""
    found = []
    for line in content["slopes"]:
        same = [
            row for row in content["rows"]
            if (row["score"], row["D"], row["dtype"]) == (line["score"], line["D"], line["dtype"])
        ]
        last = same[-1]
        found.append({
            "score": line["score"], "D": line["D"], "dtype": line["dtype"],
            "N": f"{line['from N']:,} to {line['to N']:,}", "exponent of N": number(line["slope"]),
            "at the longest": f"{last['ms']:.3g} ms ({last['fastest']:.3g}"
            f" - {last['slowest']:.3g})",
            "floor": f"{last['floor ms']:.3g} ms",
        })
    return found


def phases(content: Row) -> list[Row]:
    """phases.py."""
    return [
        {
            "N": f"{row['N']:,}", "part": row["section"],
            "time": seconds(row["seconds"]),
            "share of TTFT": f"{100 * row['share of TTFT']:.1f} %",
            "floor": seconds(row["floor s"]) if row["floor s"] else "",
        }
        for row in content["rows"] if row["share of TTFT"] >= 5e-4
    ]


def launches(content: Row) -> list[Row]:
    """phases.py --count."""
    return [
        {"N": f"{row['N']:,}", "part": row["section"], "operations": row["launches"],
         "waits": row["waits"]}
        for row in content["rows"]
    ]


def low_load(content: Row) -> list[Row]:
    """serving.py, one request at a time."""
    return [
        {
            "N": f"{row['N']:,}", "kept": f"{row['kept']:,}",
            "plain TTFT": seconds(row["plain TTFT s"]),
            "compressed TTFT": seconds(row["quickmerge TTFT s"]),
            "plain / compressed": number(row["plain / quickmerge"]), "what happened": row["status"],
        }
        for row in content.get("low_load", [])
    ]


def saturation(content: Row) -> list[Row]:
    """serving.py and saturation.py, a full cache."""
    rows = content.get("saturation") or content.get("rows", [])
    if not rows or "requests/s" not in rows[0]:
        return []
    return [
        {
            "case": row["case"].replace("quickmerge", "compressed"),
            "time": f"{row['seconds']:.0f} s ({row['fastest']:.0f} - {row['slowest']:.0f})",
            "requests/s": f"{row['requests/s']:.3g}",
            "prompt tokens/s": f"{row['prompt tokens/s']:.0f}",
            "output tokens/s": f"{row['output tokens/s']:.3g}",
            "times plain": number(row["requests/s"] / rows[0]["requests/s"]),
        }
        for row in rows
    ]


def turns(content: Row) -> list[Row]:
    """turns.py."""
    return [
        {
            "scenario": row["scenario"], "way": row["way"], "prompts": row["prompts"],
            "last prompt": f"{row['tokens']:,}", "kept": f"{row['kept_tokens']:,}",
            "found in the prefix cache": row["cached_tokens"],
            "sum of TTFT": seconds(row["ttft_sum_s"]),
            "plain / this": number(row["times_plain"]),
            "TTFT after the first": seconds(row["later_ttft_s"]),
            "blocks while decoding": row["blocks"], "at most before": row["prefill_blocks"],
            "such requests at once": row["at_once"],
        }
        for row in content["rows"]
    ]


def first_token(content: Row) -> list[Row]:
    """first_token.py."""
    return [
        {
            "N": f"{row['N']:,}", "way": row["way"], "kept": f"{row['kept']:,}",
            "TTFT": f"{seconds(row['ttft_s'])} ({seconds(row['fastest_s'])}"
            f" - {seconds(row['slowest_s'])})",
            "TTFT / plain": f"{row['ttft / plain']:.3f} ({row['lowest']:.3f}"
            f" - {row['highest']:.3f})",
            "choosing and moving": seconds(row["job_s"]) if row["way"] == "native" else "",
            "whole answer / plain": f"{row['answer / plain']:.3f}",
        }
        for row in content["rows"]
    ]


KINDS: list[tuple[str, str, Callable[[Row], list[Row]]]] = [
    ("prefill", "Time to first token", prefill),
    ("encoder", "The layers alone", encoder),
    ("phases", "A compressed prefill taken apart", phases),
    ("launches", "Operations and waits of a compressed prefill, by part", launches),
    ("memory", "Memory of a job beside the KV cache", memory),
    ("saliency", "Scores", saliency),
    ("serving", "Low load", low_load),
    ("serving", "Saturation", saturation),
    ("saturation", "Saturation", saturation),
    ("turns", "Prompts that share a prefix", turns),
    ("first_token", "Time to first token by delivery", first_token),
]


def aims(machine: str) -> list[Row]:
    """What the benchmarks of a machine were to show, and what they do; default depth."""
    found: list[tuple[str, str, bool]] = []
    rows = load(machine, "prefill").get("rows", [])
    if rows and all("of_limit" in row for row in rows):
        for row in (row for row in rows if row["n"] >= 4096):
            found.append((
                f"time to first token at {row['n']:,}: 0.9 of the limit with attention or more",
                f"{row['of_limit']:.2f}, that is {row['speedup']:.2f}x", row["of_limit"] >= 0.9,
            ))
        scored = [row["scoring_of_plain"] for row in rows]
        found.append((
            "scoring and merging: 5 % of a plain prefill or less",
            f"{100 * min(scored):.1f} to {100 * max(scored):.1f} %", max(scored) <= 0.05,
        ))
        ours, plain = exponents(machine)
        found.append((
            "exponent of N of scoring and merging: that of a plain prefill or less",
            f"{ours:.2f} and {plain:.2f}", ours <= plain,
        ))
    for row in load(machine, "encoder").get("rows", []):
        found.append((
            f"dense layers at {row['N']:,}: 1.1 of vLLM's own or less",
            number(row["ours / vLLM"]), row["ours / vLLM"] <= 1.1,
        ))
    for row in load(machine, "memory").get("rows", []):
        found.append((
            f"memory of a job of {row['N']:,}: E/L of the plain KV and 256 MiB, or less",
            f"{row['job MiB']:.1f} of {row['bound MiB']:.1f} MiB", row["within"],
        ))
    if full := load(machine, "saturation_2k").get("saturation"):
        times = full[1]["requests/s"] / full[0]["requests/s"]
        found.append((
            "a full cache (N = 2,048, 128 output tokens, ratio 0.4): 1.5 times plain or more",
            number(times), times >= 1.5,
        ))
    for row in load(machine, "serving_low").get("low_load", []):
        times = row["plain / quickmerge"]
        found.append((
            f"low load at {row['N']:,}: 0.97 of plain or more", number(times), times >= 0.97,
        ))
    return [
        {"aim": aim, "seen": seen, "met": "yes" if met else "**no**"} for aim, seen, met in found
    ]


def source(machine: str, name: str, content: Row) -> str:
    """Where the figures are from."""
    said = [content.get("gpu") or f"{content.get('cpu')}, {content.get('cores')} cores"]
    said += [str(content[name]) for name in ("model", "dtype", "date") if content.get(name)]
    said += [f"commit {content['commit']}"] if content.get("commit") else []
    file = f"results/{machine}/{name}.json"
    return f"{', '.join(said)}: `{content.get('command', '')}` ([file]({file}))"


def tables() -> str:
    """All tables, machine by machine."""
    found = []
    for machine in machines():
        text = []
        if rows := aims(machine):
            text += ["**Against the aims.** From the files below.", markdown(rows)]
        for prefix, title, make in KINDS:
            for file in sorted((stored.HERE / machine).glob(f"{prefix}*.json")):
                name, content = file.stem, load(machine, file.stem)
                if rows := make(content):
                    text += [f"**{title}.** {source(machine, name, content)}", markdown(rows)]
        if text:
            found += [f"### {machine}", *text]
    return "\n\n".join(found)
