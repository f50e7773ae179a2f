"""Programs that send many requests: vLLM's benchmark of servers and the Language Model Evaluation
Harness. They show no reports, so what became of their requests is read in the server's metrics."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from qm_vllm_eval.serving.clients.checks import MODEL

TASKS = Path(__file__).parent / "tasks"
PROMPTS = 4


@dataclass(frozen=True)
class Check:
    """One line of the table."""

    client: str
    check: str
    ok: bool
    said: str


def counts(address: str) -> Counter[str]:
    """The plug-in's counters so far, with their labels but the model's and the engine's."""
    with urllib.request.urlopen(address + "/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    found: Counter[str] = Counter()
    for line in lines:
        match = re.fullmatch(r"qm_vllm:(\w+)_total\{(.*)\} (\S+)", line)
        if match:
            label = re.search(r'(?:outcome|reason)="([^"]+)"', match[2])
            name = match[1] + (f" {label[1]}" if label else "")
            found[name] += int(float(match[3]))
    return found


@contextmanager
def counted(address: str) -> Iterator[Counter[str]]:
    """What the counters grew by meanwhile; filled when the block ends."""
    before, grown = counts(address), Counter[str]()
    yield grown
    after = counts(address)
    after.subtract(before)
    grown.update(after)


def program(command: Sequence[str], folder: Path, **environment: str) -> str:
    """The output of a program.

    Raises:
        AssertionError: it failed; with the end of what it said.
    """
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-1500:]
    return done.stdout


def bench(address: str, model: Path, folder: Path, environment: dict[str, str]) -> Iterator[Check]:
    """Random prompts twice with one seed, then with another."""
    for name, seed, again in (("new seed", 1, False), ("same seed", 1, True),
                              ("another seed", 2, False)):
        command = [
            sys.executable, "-m", "qm_vllm_patches.bench", "--backend", "openai",
            "--base-url", address, "--model", MODEL, "--tokenizer", str(model),
            "--dataset-name", "random", "--random-input-len", "600", "--random-output-len", "8",
            "--num-prompts", str(PROMPTS), "--seed", str(seed), "--disable-tqdm",
            "--extra-body", json.dumps({"vllm_xargs": {"qm_ratio": 0.25}}),
            "--save-result", "--result-dir", str(folder), "--result-filename", f"{name}.json",
        ]
        try:
            with counted(address) as grown:
                program(command, folder, **environment)
            done = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))["completed"]
            asked, hits = grown["requests compressed"], grown["memo_hits"]
            share = grown["kept_tokens"] / grown["source_tokens"]
            assert done == asked == PROMPTS, (done, asked)
            assert 0.15 < share <= 0.25, share
            assert hits == (PROMPTS if again else 0), hits
            yield Check("vllm bench serve", name, True, f"{hits} of {asked} were remembered")
        except Exception as error:
            yield Check("vllm bench serve", name, False, f"{type(error).__name__}: {error}")


def lm_eval(
    python: str, address: str, model: Path, text: str, folder: Path, environment: dict[str, str]
) -> Iterator[Check]:
    """One task of log probabilities, one of words."""
    documents = [{"text": f"Letter {number}.\n{text}"} for number in range(PROMPTS)]
    (folder / "documents.jsonl").write_text(
        "".join(json.dumps(one) + "\n" for one in documents), encoding="utf-8"
    )
    for task, outcome, most in (
        ("choice", "untouched", 2 * PROMPTS), ("words", "compressed", PROMPTS),
    ):
        command = [
            python, "-m", "lm_eval", "--model", "local-completions", "--model_args",
            f"model={MODEL},base_url={address}/v1/completions,tokenizer={model},"
            "tokenizer_backend=huggingface,num_concurrent=1,max_retries=1,max_length=4000",
            "--tasks", f"quickmerge_{task}", "--include_path", str(TASKS), "--batch_size", "1",
            "--output_path", str(folder / task),
        ]
        try:
            with counted(address) as grown:
                program(command, folder, **environment)
            asked = sum(grown[f"requests {name}"] for name in ("compressed", "untouched"))
            assert grown[f"requests {outcome}"] == asked == most, dict(grown)
            (file,) = (folder / task).rglob("results_*.json")
            result = json.loads(file.read_text(encoding="utf-8"))["results"][f"quickmerge_{task}"]
            if task == "choice":
                assert grown["fallbacks prompt_logprobs"] == asked, dict(grown)
                assert result["acc,none"] == 1.0, result
            else:
                share = grown["kept_tokens"] / grown["source_tokens"]
                assert 0.15 < share <= 0.25, share
            yield Check("lm-eval", task, True, f"{asked} requests {outcome}")
        except Exception as error:
            yield Check("lm-eval", task, False, f"{type(error).__name__}: {error}")
