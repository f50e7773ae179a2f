"""Worker of the kvpress environment: compresses one prompt with several presses and reads it.

Started by :func:`qm_vllm_eval.peers.client.kvpress_client`. A request::

    {"context_ids": [...], "feed_ids": [...], "target_ids": [...], "ks": [64, ...],
     "presses": ["snapkv", ...], "max_new_tokens": 8, "eos_ids": [...]}

``feed_ids`` are the tokens between context and target, at least one. The reply::

    {"error": null, "context_tokens": int, "prefill_seconds": float, "versions": str,
     "rows": [{"press", "k", "kept_tokens", "nll", "accuracy", "exact", "prediction_ids",
               "kv_bytes", "seconds", "settings", "error"}, ...]}

One row per press and K. ``kept_tokens``: KV entries per layer, mean over layers. ``nll``: mean
nats per target token. ``accuracy``: share of its tokens that are the first choice. ``kv_bytes``:
of the kept keys and values. ``seconds``: what the press took, without prefill, also where it
was done once for several K. A row that failed
has its reason in ``error`` and null in place of results.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field
from typing import Any

import torch

from qm_vllm_eval.peers.model_folder import readable_folder
from qm_vllm_eval.peers.prefill import plain_prefill
from qm_vllm_eval.peers.serve import describe, protected_output, serve
from qm_vllm_eval.reference.decoder import Decoder
from qm_vllm_eval.reference.reader import CompressedContext, Reader


@dataclass
class _Job:
    """A press at one K, before it is read."""

    row: dict[str, Any]
    context: CompressedContext | None = field(default=None)


class KvpressWorker:
    """Holds the model and answers requests. Needs kvpress.

    Args:
        model: a transformers model that both kvpress and the reference decoder know. The folder
            that it is from must hold its tokenizer.
    """

    def __init__(self, model: Any) -> None:
        from importlib.metadata import version

        from qm_vllm_eval.peers import presses

        self.model, self.presses = model, presses
        self.reader = Reader(Decoder(model))
        names = ("kvpress", "transformers", "torch")
        self.versions = ", ".join(f"{name} {version(name)}" for name in names)

    def handle(self, request: dict[str, Any]) -> dict[str, Any]:
        """One reply, see the module's docstring.

        Raises:
            KeyError, ValueError: the request lacks a part, or a part is not usable.
        """
        ids = [int(token) for token in request["context_ids"]]
        if not ids:
            raise ValueError("context_ids must hold at least one token")
        started = time.perf_counter()
        prefill = plain_prefill(self.model, ids)
        seconds = time.perf_counter() - started
        jobs = [
            self._compress(name, int(keep), prefill)
            for keep in request["ks"]
            for name in request["presses"]
        ]
        self._read(jobs, request)
        return {
            "error": None,
            "context_tokens": len(ids),
            "prefill_seconds": seconds,
            "versions": self.versions,
            "rows": [job.row for job in jobs],
        }

    def _compress(self, name: str, keep: int, prefill: Any) -> _Job:
        empty = ("kept_tokens", "nll", "accuracy", "exact", "prediction_ids", "kv_bytes", "seconds")
        row: dict[str, Any] = {"press": name, "k": keep, **dict.fromkeys(empty)}
        row |= {"settings": "", "error": None}
        length = prefill.ids.shape[1]
        try:
            press, row["settings"] = self.presses.build_press(name, length, keep, self.model)
            started = time.perf_counter()
            kept = self.presses.compress(self.model, press, prefill)
            row["seconds"] = time.perf_counter() - started + kept.reused_seconds
            context = CompressedContext(
                [keys[0] for keys, _ in kept.kv],
                [values[0] for _, values in kept.kv],
                next_position=length,  # kvpress leaves the kept keys at their positions
                heads=kept.heads,
            )
            row["kept_tokens"] = context.entries
            keys = context.keys[0]
            values_each = 2 * len(context.keys) * keys.shape[0] * keys.shape[2]
            row["kv_bytes"] = round(context.entries * values_each * keys.element_size())
            if context.entries > keep:
                raise RuntimeError(f"{context.entries:.2f} entries per layer kept, not {keep}")
        except Exception as error:
            row["error"] = describe(error)
            return _Job(row)
        return _Job(row, context)

    def _read(self, jobs: list[_Job], request: dict[str, Any]) -> None:
        ready = [(job.row, job.context) for job in jobs if job.context is not None]
        if not ready:
            return
        try:
            readings = self.reader.read(
                [context for _, context in ready],
                [list(request["feed_ids"])] * len(ready),
                list(request["target_ids"]),
                int(request["max_new_tokens"]),
                set(request["eos_ids"]),
            )
        except (RuntimeError, MemoryError) as error:
            for row, _ in ready:
                row["error"] = describe(error)
            return
        for (row, _), reading in zip(ready, readings, strict=True):
            row["nll"], row["accuracy"] = reading.nll, reading.accuracy
            row["exact"] = reading.exact
            row["prediction_ids"] = reading.prediction_ids


def main() -> None:
    """Command line of the worker."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder of a transformers model")
    parser.add_argument("--dtype", default="bfloat16", help="torch dtype to load it in")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    replies = protected_output()
    torch.set_num_threads(options.threads)
    from transformers import AutoModelForCausalLM

    dtype = getattr(torch, options.dtype)
    with readable_folder(options.model) as folder:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        serve(KvpressWorker(model).handle, replies)  # KVzip reads the tokenizer when it is asked


if __name__ == "__main__":
    main()
