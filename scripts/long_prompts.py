#!/usr/bin/env python
"""Measures prompts that are longer than ``max_model_len``: facts at five depths, real questions.

    .venv/bin/python scripts/long_prompts.py --model DIR --data FOLDER --json long.json

Every prompt is served in some ways, each by an engine of its own: ``plain`` (vLLM with a
``max_model_len`` that holds it, where the model has one), ``ours`` (``--max-model-len``, with
``max_source_tokens``), ``parts`` (the same with a KV cache of ``--blocks`` blocks for each length,
which holds no prompt as a whole, so that it is read in parts) and ``cut`` (vLLM with
``--max-model-len``, the middle of the text left out: what a user of a small cache does today).
``needles``: one number in an essay at each depth. ``questions``: L-Eval's on documents of these
lengths, F1 of the answer; FOLDER holds ``leval/Open-ended-tasks/NAME.jsonl``.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qm_vllm import QuickMergeConfig, local_engine
from qm_vllm_eval import haystacks
from qm_vllm_eval.answers import answer_scores
from qm_vllm_eval.study import meta
from qm_vllm_patches import llm as vllm

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
CITIES = ("Lisbon", "Bergen", "Quito", "Osaka", "Tunis", "Perth", "Gdansk", "Malaga", "Sofia")
ANSWER = 48
"""Tokens of an answer at most."""


@dataclass(frozen=True)
class Asked:
    """A text, a question on it, and its right answers.

    Attributes:
        length: tokens that the prompt was made for. depth: of the fact; None: a real question.
    """

    kind: str
    length: int
    depth: float | None
    text: str
    question: str
    answers: tuple[str, ...]


def needles(lengths: list[int], count: int, tokens: Any) -> Iterator[Asked]:
    """``count`` prompts for each length and depth."""
    for length in lengths:
        for depth in DEPTHS:
            for number in range(count):
                rng = random.Random(f"{length}-{depth}-{number}")
                city, value = rng.choice(CITIES), str(rng.randrange(10**6, 10**7))
                pieces = haystacks.passage("essays", "report", rng, length - 120, tokens)
                texts = [piece.joiner + piece.text for piece in pieces]
                fact = f" The special number of {city} is {value}."
                texts.insert(round(depth * len(texts)), fact)
                yield Asked(
                    "needles", length, depth, "".join(texts).strip(),
                    f"What is the special number of {city}? Answer with the number only.", (value,),
                )


def questions(folder: Path, lengths: list[int], tasks: list[str], count: int, tokens: Any
              ) -> Iterator[Asked]:
    """The first question of documents whose text is about as long as one of the lengths."""
    for length in lengths:
        left = count
        for task in tasks:
            file = folder / "leval" / "Open-ended-tasks" / f"{task}.jsonl"
            for line in file.read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                if not left or not 0.6 * length < tokens(row["input"]) < length - 200:
                    continue
                for question, answer in list(zip(
                    row["instructions"], row["outputs"], strict=True
                ))[:2]:
                    if left:
                        left -= 1
                        yield Asked(
                            "questions", length, None, row["input"],
                            f"Question: {question} Answer briefly.", (answer,),
                        )


def prompt_of(asked: Asked, tokenizer: Any, most: int | None) -> list[int]:
    """Token ids of the chat; with ``most`` the middle of the text is left out."""
    def ids(text: str) -> list[int]:
        content = f"{text}\n\n{asked.question}"
        return list(tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, return_dict=False,
        ))

    whole = ids(asked.text)
    if most is None or len(whole) <= most:
        return whole
    text = tokenizer.encode(asked.text, add_special_tokens=False)
    half = (most - len(ids("")) - 8) // 2
    first, last = tokenizer.decode(text[:half]), tokenizer.decode(text[len(text) - half :])
    return ids(f"{first}\n...\n{last}")


def score(asked: Asked, answer: str) -> float:
    if asked.kind == "needles":
        return float(asked.answers[0] in answer)
    return answer_scores(answer.strip().split("\n")[0], list(asked.answers))["f1"]


def served(
    way: str, given: argparse.Namespace, asked: list[Asked], blocks: int | None
) -> list[dict[str, Any]]:
    """One row a prompt: kept tokens, answer and score."""
    longest = max(one.length for one in asked) + 200
    config = QuickMergeConfig(enabled=False)
    length = longest + ANSWER
    if way != "plain":
        length = given.max_model_len
    more: dict[str, Any] = {}
    if way in ("ours", "parts"):
        config = QuickMergeConfig(ratio=given.ratio, max_source_tokens=longest)
    if blocks is not None:
        more = {"block_size": 128, "num_gpu_blocks_override": blocks}
    llm = local_engine.start(
        given.model, config, max_model_len=length, dtype=given.dtype,
        enable_prefix_caching=False, max_num_seqs=1, enforce_eager=True, **more,
    )
    tokenizer = llm.get_tokenizer()
    rows = []
    params = vllm.sampling(max_tokens=ANSWER, temperature=0.0)
    for one in asked:
        ids = prompt_of(one, tokenizer, length - ANSWER if way == "cut" else None)
        (output,) = llm.generate([{"prompt_token_ids": ids}], params, use_tqdm=False)
        report = (output.kv_transfer_params or {}).get("quickmerge", {})
        text = output.outputs[0].text
        rows.append({
            "way": way, "kind": one.kind, "length": one.length, "depth": one.depth,
            "tokens": len(ids), "blocks": blocks, "kept": report.get("kept_tokens", len(ids)),
            "status": report.get("status"), "positions": report.get("positions"),
            "score": score(one, text), "answer": text[:200],
        })
        print(f"{way} {one.kind} {len(ids)} -> {rows[-1]['kept']}: {rows[-1]['score']:.2f}",
              flush=True)
    vllm.shut_down(llm)
    del llm
    gc.collect()
    return rows


def main() -> None:
    """Serve what the file does not have yet, one way after another."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, help="folder that holds leval/; none: no questions")
    parser.add_argument("--json", type=Path, required=True, help="file of results, added to")
    parser.add_argument("--way", choices=("plain", "ours", "parts", "cut"), required=True)
    parser.add_argument(
        "--blocks", default="48,80", help="of 128 tokens, of the cache of --way parts, by length"
    )
    parser.add_argument("--max-model-len", type=int, default=4096)
    parser.add_argument("--lengths", default="8000,16000")
    parser.add_argument("--ratio", type=float, default=0.2)
    parser.add_argument("--needles", type=int, default=2, help="of each length and depth")
    parser.add_argument("--questions", type=int, default=8, help="of each length")
    parser.add_argument("--tasks", default="scientific_qa,multidoc_qa,natural_question")
    parser.add_argument("--dtype", default="auto")
    given = parser.parse_args()
    local_engine.set_environment(quiet=True)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(given.model)

    def tokens(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False))

    lengths = [int(one) for one in given.lengths.split(",")]
    asked = list(needles(lengths, given.needles, tokens))
    if given.data is not None:
        asked += questions(given.data, lengths, given.tasks.split(","), given.questions, tokens)
    held = json.loads(given.json.read_text()) if given.json.exists() else {"rows": []}
    rows = [row for row in held["rows"] if row["way"] != given.way]
    if given.way == "parts":
        for length, blocks in zip(lengths, given.blocks.split(","), strict=True):
            own = [one for one in asked if one.length == length]
            rows += served(given.way, given, own, int(blocks))
    else:
        rows += served(given.way, given, asked, None)
    facts = {
        "date": meta.now(), "commit": meta.commit(), "hardware": meta.hardware(),
        "model": Path(given.model).name,
        "arguments": {
            name: value for name, value in vars(given).items()
            if name not in ("model", "json", "data", "way")
        },
    }
    given.json.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
