#!/usr/bin/env python
"""Measures what compression does to an agent: the calls it makes, and the fields it fills.

    .venv/bin/python scripts/agent_policy.py --model DIR --json policy.json

``calls``: conversations of 12 turns with two tools. A person asks for one look-up a turn, the
conversation goes on with the right call, a long result and a short answer, whatever the model said.
``fields``: a form with three levels of fields, filled from a document under a JSON schema. Each
policy sees the same prompts; plain vLLM (the plug-in off) is one of them.

``same_name`` and ``parses`` are shares of plain's calls; ``same_call`` also compares arguments;
``coverage`` is the share of leaf fields with the document's value. ``other_calls`` are those that
plain vLLM did not make.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qm_vllm import QuickMergeConfig, local_engine, request_args
from qm_vllm_eval.study import meta
from qm_vllm_patches import llm as vllm

POLICIES: dict[str, dict[str, Any]] = {
    "plain": {"enabled": False},
    "default": {},
    "no hint": {"hint": ""},
    "0.25": {"ratio": 0.25},
    "0.25, no hint": {"ratio": 0.25, "hint": ""},
    "0.5, no hint": {"ratio": 0.5, "hint": ""},
    "0.7, no hint": {"ratio": 0.7, "hint": ""},
    "no roles": {"keep_roles": "none"},
}
TOOLS = [
    {"type": "function", "function": {
        "name": "get_order", "description": "Gets the state of one order of the shop.",
        "parameters": {"type": "object", "properties": {
            "order_id": {"type": "string", "description": "Number of the order"}},
            "required": ["order_id"]},
    }},
    {"type": "function", "function": {
        "name": "search_notes", "description": "Searches the notes of the team for a topic.",
        "parameters": {"type": "object", "properties": {
            "topic": {"type": "string", "description": "What the notes are about"}},
            "required": ["topic"]},
    }},
]
TOPICS = (
    "the warehouse in Lyon", "spare batteries", "the spring catalogue", "late parcels",
    "the new scanner", "gift wrapping", "customs forms", "returns from Norway", "night shifts",
    "paper labels", "the loading dock", "broken pallets",
)
WORDS = (
    "parcel", "shelf", "carrier", "weight", "label", "pallet", "invoice", "scanner", "north",
    "dock", "driver", "morning", "signature", "truck", "delay", "customer", "window", "fragile",
    "route", "stock", "count", "team", "forklift", "gate",
)
PLACES = ("Lyon", "Bergen", "Porto", "Graz", "Turku", "Cork", "Ghent", "Lund")
NAMES = ("Ada", "Boris", "Chika", "Dario", "Elin", "Farid", "Greta", "Hugo")


def result_of(chooser: random.Random, lines: int) -> str:
    """What a tool gives back: a list of records."""
    records = [
        {"line": i, "text": " ".join(chooser.choices(WORDS, k=8)), "amount": chooser.randrange(900)}
        for i in range(lines)
    ]
    return json.dumps({"records": records})


def turns(seed: int, count: int, lines: int) -> Iterator[list[dict[str, Any]]]:
    """The messages before each of the model's calls."""
    chooser = random.Random(seed)
    talk: list[dict[str, Any]] = [{
        "role": "system",
        "content": "You work for a shop. Call one tool for every question, and nothing else.",
    }]
    for number in range(count):
        if chooser.random() < 0.5:
            order = str(chooser.randrange(10_000, 99_999))
            ask = f"What is the state of order {order}?"
            call = {"name": "get_order", "arguments": {"order_id": order}}
        else:
            topic = chooser.choice(TOPICS)
            ask = f"Search the notes for {topic}."
            call = {"name": "search_notes", "arguments": {"topic": topic}}
        talk.append({"role": "user", "content": ask})
        yield list(talk)
        talk += [
            {"role": "assistant", "content": "", "tool_calls": [
                {"type": "function", "id": f"call{number:05d}", "function": call}]},
            {"role": "tool", "tool_call_id": f"call{number:05d}",
             "content": result_of(chooser, lines)},
            {"role": "assistant", "content": f"Done: line {chooser.randrange(lines)} fits."},
        ]


def form(seed: int, paragraphs: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Messages that ask for a form with three levels, and the right one."""
    chooser = random.Random(seed)
    right = {
        "company": {
            "name": f"{chooser.choice(NAMES)} & {chooser.choice(NAMES)}",
            "seat": {"town": chooser.choice(PLACES), "code": str(chooser.randrange(1000, 9999))},
            "contact": {"name": chooser.choice(NAMES), "phone": str(chooser.randrange(10**6))},
        },
        "order": {
            "number": str(chooser.randrange(10**5)),
            "goods": {"kind": chooser.choice(WORDS), "pieces": str(chooser.randrange(2, 90))},
        },
    }
    company, order = right["company"], right["order"]
    facts = [
        f"The company is called {company['name']}.",
        f"It has its seat in {company['seat']['town']}, postal code {company['seat']['code']}.",
        f"Its contact is {company['contact']['name']}, phone {company['contact']['phone']}.",
        f"The order has the number {order['number']}.",
        f"It is for {order['goods']['pieces']} pieces of the kind {order['goods']['kind']}.",
    ]
    filler = [
        " ".join(chooser.choices(WORDS, k=45)).capitalize() + "." for _ in range(paragraphs)
    ]
    places = sorted(chooser.sample(range(paragraphs), len(facts)))
    for place, fact in zip(places, facts, strict=True):
        filler[place] += " " + fact
    ask = "Fill the form from the letter above. Answer with JSON alone."
    return [{"role": "user", "content": "\n\n".join([*filler, ask])}], right


def schema_of(form: Any) -> dict[str, Any]:
    """A JSON schema that asks for every field of a form."""
    if isinstance(form, str):
        return {"type": "string", "maxLength": 24}
    return {
        "type": "object", "properties": {name: schema_of(part) for name, part in form.items()},
        "required": list(form), "additionalProperties": False,
    }


def leaves(form: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], str]:
    """Values of a form by their paths."""
    if not isinstance(form, dict):
        return {path: str(form)}
    return {k: v for name, part in form.items() for k, v in leaves(part, (*path, name)).items()}


def call_in(text: str) -> dict[str, Any] | None:
    """The call that an answer makes; None: it makes none that parses."""
    found = re.search(r"\{.*\}", text, re.DOTALL)
    try:
        call = json.loads(found[0]) if found else None
    except ValueError:
        return None
    return call if isinstance(call, dict) and isinstance(call.get("arguments"), dict) else None


def answers(
    llm: Any, prompts: list[list[dict[str, Any]]], options: dict[str, Any], *, tools: Any = None,
    schemas: list[Any] | None = None, most: int = 80,
) -> list[tuple[str, dict[str, Any]]]:
    """Text and report of each, one after the other as a client would send them."""
    from vllm.sampling_params import StructuredOutputsParams

    found = []
    for place, messages in enumerate(prompts):
        extra = {}
        if schemas is not None:
            extra["structured_outputs"] = StructuredOutputsParams(json=schemas[place])
        params = vllm.sampling(
            max_tokens=most, temperature=0.0, extra_args=request_args(**options), **extra
        )
        (out,) = llm.chat(messages, params, tools=tools, use_tqdm=False)
        found.append((out.outputs[0].text, (out.kv_transfer_params or {})["quickmerge"]))
    return found


def measure(args: argparse.Namespace, llm: Any) -> list[dict[str, Any]]:
    """One row for each policy."""
    talks = [talk for seed in range(args.talks) for talk in turns(seed, args.turns, args.lines)]
    forms = [form(seed, args.paragraphs) for seed in range(args.forms)]
    rows: list[dict[str, Any]] = []
    plain: list[dict[str, Any] | None] = []
    for policy, options in POLICIES.items():
        if policy != "plain" and policy not in args.policies:
            continue
        said = answers(llm, talks, options, tools=TOOLS)
        calls = [call_in(text) for text, _ in said]
        if policy == "plain":
            plain = calls
        pairs = [(own, want) for own, want in zip(calls, plain, strict=True) if want]
        filled = answers(
            llm, [messages for messages, _ in forms], options, most=220,
            schemas=[schema_of(right) for _, right in forms],
        )
        hits, total = 0, 0
        for (text, _), (_, right) in zip(filled, forms, strict=True):
            try:
                got = leaves(json.loads(text))
            except ValueError:
                got = {}
            want = leaves(right)
            hits += sum(got.get(path) == value for path, value in want.items())
            total += len(want)
        kept = [r["kept_tokens"] / r["source_tokens"] for _, r in [*said, *filled]]
        rows.append({
            "policy": policy, "turns": len(talks), "calls_of_plain": len(pairs),
            "parses": sum(own is not None for own, _ in pairs) / max(1, len(pairs)),
            "same_name": sum(bool(own) and own.get("name") == want.get("name")
                             for own, want in pairs) / max(1, len(pairs)),
            "same_call": sum(own == want for own, want in pairs) / max(1, len(pairs)),
            "coverage": hits / max(1, total), "kept": sum(kept) / len(kept),
            "compressed": sum(r["status"] == "compressed" for _, r in [*said, *filled]),
            "other_calls": [
                {"turn": place % args.turns, "said": text[:200],
                 "source_tokens": report["source_tokens"], "kept_tokens": report["kept_tokens"]}
                for place, ((text, report), own) in enumerate(zip(said, calls, strict=True))
                if own != plain[place]
            ],
            "longest": max(r["source_tokens"] for _, r in [*said, *filled]),
        })
        print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder of a model that can call tools")
    parser.add_argument("--talks", type=int, default=3)
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--lines", type=int, default=8, help="records of a tool's result")
    parser.add_argument("--forms", type=int, default=8)
    parser.add_argument("--paragraphs", type=int, default=20)
    parser.add_argument("--policies", nargs="*", default=list(POLICIES), choices=list(POLICIES),
                        help="beside plain, which is always measured")
    parser.add_argument("--delivery", default="native")
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    config = QuickMergeConfig(delivery=args.delivery, min_tokens=256)
    llm = local_engine.start(
        args.model, config, max_model_len=8192, block_size=32, enforce_eager=True,
        enable_prefix_caching=True, max_num_seqs=2,
    )
    rows = measure(args, llm)
    facts = {
        "date": meta.now(), "commit": meta.commit(), "hardware": meta.hardware(),
        "model": Path(args.model).name,
        "arguments": {k: v for k, v in vars(args).items() if k not in ("model", "json")},
    }
    args.json.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")
    vllm.shut_down(llm)


if __name__ == "__main__":
    main()
