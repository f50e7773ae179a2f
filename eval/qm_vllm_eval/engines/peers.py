"""Peer packages in environments of their own, asked by the reference engine."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from qm_vllm_eval.engines.base import Cell, make_row
from qm_vllm_eval.methods import kvpress, llmlingua
from qm_vllm_eval.peers.client import (
    PeerClient,
    PeerFailed,
    kvpress_client,
    llmlingua_client,
)
from qm_vllm_eval.peers.environment import PeerMissing
from qm_vllm_eval.prompt import Prompt
from qm_vllm_eval.row import Row
from qm_vllm_eval.sample import Sample


class Peers:
    """Starts a worker when it is first needed; remembers those that cannot be started."""

    def __init__(self, model: str, dtype: str, threads: int) -> None:
        self.starters: dict[str, Callable[[], PeerClient]] = {
            kvpress.WORKER: lambda: kvpress_client(model, dtype, threads),
            llmlingua.WORKER: lambda: llmlingua_client(model, threads),
        }
        self.clients: dict[str, PeerClient] = {}
        self.settings: dict[str, str] = {}
        self.versions: dict[str, str] = {}
        self.missing: dict[str, PeerMissing] = {}

    def ask(self, worker: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """One request to a worker.

        Raises:
            PeerMissing: its environment is not there.
            PeerFailed: it crashed or refused the request.
        """
        if worker in self.missing:
            raise self.missing[worker]
        if worker not in self.clients:
            try:
                self.clients[worker] = self.starters[worker]()
            except PeerMissing as error:
                self.missing[worker] = error
                raise
        answer = self.clients[worker].request(dict(request))
        if "versions" in answer:
            self.versions[f"{worker} worker"] = answer["versions"]
        return answer

    def press(
        self,
        prompt: Prompt,
        cells: Sequence[Cell],
        ks: Mapping[float, int],
        eos: Collection[int],
        bytes_per_token: int,
        tokenizer: Any,
    ) -> list[Row]:
        """Rows of kvpress methods, with K of each ratio, held tokens included, in ``ks``."""
        sample, held = prompt.sample, prompt.held
        stored = {ratio: k - held for ratio, k in ks.items()}
        presses = list(dict.fromkeys(kvpress.press_of(method.name) for method, _ in cells))
        request = {
            "context_ids": prompt.ids[: prompt.seen - held], "feed_ids": prompt.feed,
            "target_ids": prompt.target, "ks": sorted(set(stored.values())), "presses": presses,
            "max_new_tokens": sample.max_new_tokens, "eos_ids": sorted(eos),
        }
        try:
            answer = self.ask(kvpress.WORKER, request)
            if answer.get("error"):
                raise PeerFailed(answer["error"])
        except (PeerMissing, PeerFailed) as error:
            return [
                make_row(sample, cell, prompt_tokens=len(prompt.ids), status=str(error))
                for cell in cells
            ]
        found = {(row["press"], row["k"]): row for row in answer["rows"]}
        rows = []
        for cell in cells:
            row = found[kvpress.press_of(cell[0].name), stored[cell[1]]]
            if row["error"]:
                rows.append(make_row(
                    sample, cell, prompt_tokens=len(prompt.ids), status=row["error"]
                ))
                continue
            self.settings[cell[0].name] = f"kvpress: {row['settings']}"
            text = tokenizer.decode(row["prediction_ids"], skip_special_tokens=True)
            rows.append(make_row(
                sample, cell, prompt_tokens=len(prompt.ids),
                kept_tokens=row["kept_tokens"] + len(prompt.feed),
                bytes_per_token=bytes_per_token, nll=row["nll"], accuracy=row["accuracy"],
                exact=row["exact"],
                prediction=text, seconds=row["seconds"],
            ))
        return rows

    def shorten(
        self, name: str, sample: Sample, tokens: int, tokens_now: int
    ) -> tuple[str, float]:
        """The context in at most ``tokens`` tokens, and the seconds that took.

        Raises:
            PeerMissing, PeerFailed: see :meth:`ask`.
        """
        answer = self.ask(llmlingua.WORKER, {
            "method": name, "context": sample.context, "question": sample.question,
            "target_tokens": tokens, "tokens_now": tokens_now,
        })
        if answer.get("error"):
            raise PeerFailed(answer["error"])
        self.settings[name] = f"{name}: {answer['settings']}"
        return answer["text"], float(answer["seconds"])

    def close(self) -> None:
        """End all workers."""
        for client in self.clients.values():
            client.close()
        self.clients = {}
