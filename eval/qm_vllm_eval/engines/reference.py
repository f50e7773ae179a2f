"""Every method on transformers modules: one prefill of a sample serves all methods and ratios."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from qm_vllm.layers import WINDOW_QUERIES
from qm_vllm.processor import best_dtype
from qm_vllm.special_tokens import special_ids
from qm_vllm_eval.engines.base import Cell, budget, make_row
from qm_vllm_eval.engines.peers import Peers
from qm_vllm_eval.methods import Budget, Request, Unfit, kvpress, llmlingua, plain
from qm_vllm_eval.methods.base import Asked, prefill_ids
from qm_vllm_eval.prompt import Prompt, prompt_parts
from qm_vllm_eval.reference.decoder import Decoder
from qm_vllm_eval.reference.prefill import Prefill
from qm_vllm_eval.reference.reader import CompressedContext, Reader
from qm_vllm_eval.row import Row
from qm_vllm_eval.sample import Sample


@dataclass(eq=False)
class Ready:
    """A context that waits for its reading."""

    cell: Cell
    context: CompressedContext
    feed: list[int]
    seconds: float


class ReferenceEngine:
    """The harness outside vLLM.

    Args:
        model: folder or name of a Llama-like transformers model.
        dtype: "auto" (bfloat16 where the CPU multiplies it in hardware, else float32) or a
            name of torch's.
        block_size: K is rounded to whole blocks plus one; 1 leaves it exact.
        device: torch's name; None: CUDA if there is one.
        threads: CPU threads; None: torch's choice.

    Raises:
        UnsupportedModel: the model's layers are not known.
    """

    def __init__(
        self, model: str | Path, *, dtype: str = "auto", block_size: int = 1,
        device: str | None = None, threads: int | None = None,
    ) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        if threads:
            torch.set_num_threads(threads)
        place = device or ("cuda" if torch.cuda.is_available() else "cpu")
        kind = getattr(torch, best_dtype() if dtype == "auto" else dtype)
        self.tokenizer = AutoTokenizer.from_pretrained(str(model))
        loaded = AutoModelForCausalLM.from_pretrained(str(model), dtype=kind)
        self.decoder = Decoder(loaded.eval().to(place))
        self.reader, self.block_size = Reader(self.decoder), block_size
        self.eos = _end_tokens(loaded, self.tokenizer)
        self.special = special_ids(self.tokenizer)
        self.peers = Peers(str(model), str(kind).removeprefix("torch."), torch.get_num_threads())

    def facts(self) -> dict[str, Any]:
        """See :class:`qm_vllm_eval.engines.base.Engine`."""
        return {
            "engine": "reference", "dtype": str(self.decoder.dtype).removeprefix("torch."),
            "device": self.decoder.device.type, "block_size": self.block_size,
            "layers": self.decoder.num_layers,
            "kv_bytes_per_token": self.decoder.kv_bytes_per_token,
        }

    def learned(self) -> dict[str, dict[str, str]]:
        """See :class:`qm_vllm_eval.engines.base.Engine`."""
        return {"methods": self.peers.settings, "versions": self.peers.versions}

    def close(self) -> None:
        """End the peers' workers."""
        self.peers.close()

    @torch.inference_mode()
    def evaluate(self, sample: Sample, cells: Sequence[Cell]) -> Iterator[list[Row]]:
        """See :class:`qm_vllm_eval.engines.base.Engine`."""
        prompt = Prompt.of(sample, self.tokenizer)
        own = [cell for cell in cells if cell[0].peer is None]
        if own:
            yield self._evaluate_own(prompt, own)
        yield from self._evaluate_peers(prompt, [cell for cell in cells if cell[0].peer])

    @torch.inference_mode()
    def answer(self, sample: Sample, most: int) -> list[int]:
        """See :class:`qm_vllm_eval.engines.base.Engine`."""
        prompt = Prompt.of(sample, self.tokenizer)
        cell = (plain.METHOD, 1.0)
        context, feed = self._compress(prompt, self.request_for(prompt), cell)
        return self.reader.answer(context, feed, most, self.eos)

    def request_for(self, prompt: Prompt) -> Request:
        """The prompt with its prefill; K is set for each ratio."""
        seen = prompt.seen
        special = tuple(i for i, token in enumerate(prompt.ids[:seen]) if token in self.special)
        return Request(
            Prefill.run(self.decoder, prompt.ids).upto(seen), prompt.held, seen,
            visible=prompt.sample.query_visible, special=special, seed=prompt.sample.index,
            hint=self._asked(prompt),
        )

    def _asked(self, prompt: Prompt) -> Asked | None:
        hint, seen = prompt.sample.hint, prompt.ids[: prompt.seen]
        if not hint:
            return None
        ids = self.tokenizer.encode(hint, add_special_tokens=False)[-WINDOW_QUERIES:]
        return Asked(hint, len(ids), Prefill.run(self.decoder, [*seen, *ids]))

    def k_for(self, prompt: Prompt, ratio: float) -> int:
        """Positions to keep of those that may be seen."""
        return budget(prompt.seen, ratio, self.block_size)

    def _evaluate_own(self, prompt: Prompt, cells: Sequence[Cell]) -> list[Row]:
        ready: list[Ready] = []
        rows: list[Row] = []
        request = self.request_for(prompt)
        for cell in cells:
            start = time.perf_counter()
            try:
                context, feed = self._compress(prompt, request, cell)
            except Exception as error:
                rows.append(_failed(prompt, cell, error))
                continue
            ready.append(Ready(cell, context, feed, time.perf_counter() - start))
        return rows + self._read(prompt, ready)

    def _compress(
        self, prompt: Prompt, request: Request, cell: Cell
    ) -> tuple[CompressedContext, list[int]]:
        method, ratio = cell
        if method.budget is Budget.NONE:
            ids = torch.tensor(prompt.bare[:-1])
            places = torch.arange(len(ids))
            return prefill_ids(self.decoder, ids, places, len(ids)), prompt.bare[-1:]
        if prompt.seen < 2 and method.budget is Budget.GRID:
            raise Unfit("there is nothing to compress")
        k = prompt.seen if method.budget is Budget.FULL else self.k_for(prompt, ratio)
        assert method.compress is not None
        return method.compress(replace(request, k=k)), prompt.feed

    def _read(self, prompt: Prompt, ready: Sequence[Ready]) -> list[Row]:
        rows = []
        for size in sorted({len(item.feed) for item in ready}):
            batch = [item for item in ready if len(item.feed) == size]
            readings = self.reader.read(
                [item.context for item in batch],
                [item.feed for item in batch],
                prompt.target,
                prompt.sample.max_new_tokens,
                self.eos,
            )
            for item, reading in zip(batch, readings, strict=True):
                width = item.context.bytes_per_value or self.decoder.dtype.itemsize
                per_token = self.decoder.kv_bytes_per_token / self.decoder.dtype.itemsize * width
                rows.append(make_row(
                    prompt.sample, item.cell,
                    prompt_tokens=len(prompt.ids),
                    kept_tokens=item.context.entries + len(item.feed),
                    bytes_per_token=per_token,
                    nll=reading.nll,
                    accuracy=reading.accuracy,
                    exact=reading.exact,
                    prediction=self.tokenizer.decode(
                        reading.prediction_ids, skip_special_tokens=True
                    ),
                    seconds=item.seconds,
                    evidence_kept=prompt.evidence_kept(item.context.kept),
                ))
        return rows

    def _evaluate_peers(self, prompt: Prompt, cells: Sequence[Cell]) -> Iterator[list[Row]]:
        presses = [cell for cell in cells if cell[0].peer == kvpress.WORKER]
        if presses:
            ks = {ratio: self.k_for(prompt, ratio) for _, ratio in presses}
            yield self.peers.press(
                prompt, presses, ks, self.eos, self.decoder.kv_bytes_per_token, self.tokenizer
            )
        for cell in cells:
            if cell[0].peer == llmlingua.WORKER:
                yield self._evaluate_text(prompt, cell)

    def _evaluate_text(self, prompt: Prompt, cell: Cell) -> list[Row]:
        """A peer that returns a shorter text, which is then prefilled as any prompt is."""
        sample = prompt.sample
        try:
            k = self.k_for(prompt, cell[1])
            if cell[0].needs_question and not (sample.query_visible and sample.question):
                raise Unfit("it needs a question, and this sample has none or hides it")
            head = len(prompt_parts(replace(sample, context=""), self.tokenizer)[0])
            fixed = head + (len(prompt.ids) - prompt.context if sample.query_visible else 0)
            room = k - fixed
            if room < 1:
                raise Unfit(f"the question alone has {fixed} tokens, the budget is {k}")
            text, seconds = self.peers.shorten(
                cell[0].name, sample, room, prompt.context - head
            )
            context, question, _ = prompt_parts(replace(sample, context=text), self.tokenizer)
            ids = [*context, *question[:-1]] if sample.query_visible else context
            start = time.perf_counter()
            stored = prefill_ids(
                self.decoder, torch.tensor(ids), torch.arange(len(ids)), len(ids)
            )
            seconds += time.perf_counter() - start
        except Exception as error:
            return [_failed(prompt, cell, error)]
        return self._read(prompt, [Ready(cell, stored, prompt.feed, seconds)])


def _failed(prompt: Prompt, cell: Cell, error: Exception) -> Row:
    if isinstance(error, Unfit):
        reason = f"not applicable: {error}"
    else:
        reason = f"{type(error).__name__}: {error}"
    return make_row(prompt.sample, cell, prompt_tokens=len(prompt.ids), status=reason)


def _end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(i for i in [*ids, tokenizer.eos_token_id] if i is not None)
