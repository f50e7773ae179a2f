"""Five windows of a clip from a trained prior's time bins: by vLLM, and by transformers alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from qm_vllm.prior import PriorConfig, QuickMergePriorForCausalLM, StatePrompts
from qm_vllm.prior.side_inputs import hashed_words
from qm_vllm_eval.datasets.time_bins import TimeBins
from qm_vllm_eval.localisation import SEGMENTS, Span

STARTS = 5
"""How many first bins are followed up."""


class BinReader(Protocol):
    """Log-probabilities of the next time bin after states and output ids."""

    def bins(self, states: Sequence[Tensor], ids: Sequence[Sequence[int]]) -> list[Tensor]:
        """For each of several prompts, states [K, D] and the ids after them: [num_time_bins]."""
        ...


class TransformersBins:
    """By the transformers class, one prompt after the other: the reference."""

    def __init__(self, folder: str | Path) -> None:
        self.model = QuickMergePriorForCausalLM.from_pretrained(folder).eval()
        self.places = self.model.config.ids("time_bins")

    @torch.inference_mode()
    def bins(self, states: Sequence[Tensor], ids: Sequence[Sequence[int]]) -> list[Tensor]:
        """See :class:`BinReader`."""
        found = []
        for rows, after in zip(states, ids, strict=True):
            given = torch.tensor([list(after)], dtype=torch.long) if after else None
            logits = self.model(rows[None], input_ids=given).logits[0, -1]
            found.append(logits[self.places.start : self.places.stop].log_softmax(-1))
        return found


class VllmBins:
    """By vLLM: the states and the ids' embeddings are the prompt, the next bin is generated.

    The engine (:meth:`start`) finds the states in its prefix cache when the first bins are
    followed up.
    """

    def __init__(self, llm: Any, folder: str | Path) -> None:
        self.llm = llm
        self.prompts = StatePrompts.from_pretrained(folder)
        self.table = _embeddings(folder)
        self.places = PriorConfig.from_pretrained(folder).ids("time_bins")

    @classmethod
    def start(cls, folder: str | Path, **options: Any) -> VllmBins:
        """An engine of this process for a prior's folder; ``options`` are vLLM's."""
        from vllm import LLM

        count = len(PriorConfig.from_pretrained(folder).ids("time_bins"))
        settings = {
            "enable_prompt_embeds": True, "skip_tokenizer_init": True, "max_logprobs": count,
            "logprobs_mode": "processed_logprobs",  # of the time bins alone
        }
        return cls(LLM(str(folder), **{**settings, **options}), folder)

    def bins(self, states: Sequence[Tensor], ids: Sequence[Sequence[int]]) -> list[Tensor]:
        """See :class:`BinReader`."""
        from vllm import SamplingParams

        params = SamplingParams(
            max_tokens=1, temperature=0.0, logprobs=len(self.places), detokenize=False,
            allowed_token_ids=list(self.places), ignore_eos=True,
        )
        prompts = [
            {"prompt_embeds": torch.cat((
                self.prompts.embed(rows), self.table[torch.tensor(list(after), dtype=torch.long)]
            ))}
            for rows, after in zip(states, ids, strict=True)
        ]
        outputs = self.llm.generate(prompts, params, use_tqdm=False)
        return [self._row(output.outputs[0].logprobs[0]) for output in outputs]

    def _row(self, entries: Any) -> Tensor:
        row = torch.full((len(self.places),), float("-inf"))
        for token, entry in entries.items():
            if token in self.places:
                row[token - self.places.start] = entry.logprob
        return row.log_softmax(-1)


def windows(
    reader: BinReader, config: PriorConfig, states: Sequence[Tensor], queries: Sequence[str],
    seconds: Sequence[float],
) -> list[list[Span]]:
    """Up to five windows for each query, the best first.

    The first bin's five best are each followed by the distribution of the last bin; pairs are
    ordered by the sum of both log-probabilities.

    Args:
        states: of each query's clip, as :func:`qm_vllm_eval.ego4d.reduce.reduce` makes them.
        seconds: length of each clip.
    """
    places = config.ids("time_bins")
    asked = [hashed_words(query, config.num_tokens) for query in queries]
    firsts = reader.bins(states, asked)
    follow = [
        (row, int(first)) for row, scores in enumerate(firsts)
        for first in scores.topk(min(STARTS, len(places))).indices
    ]
    lasts = reader.bins(
        [states[row] for row, _ in follow],
        [[*asked[row], places.start + first] for row, first in follow],
    )
    pairs: list[list[tuple[float, int, int]]] = [[] for _ in states]
    for (row, first), scores in zip(follow, lasts, strict=True):
        pairs[row] += [
            (-float(firsts[row][first] + scores[last]), first, last)
            for last in range(first, len(places))
        ]
    return [
        [TimeBins(length, len(places)).to_seconds(first, last)
         for _, first, last in sorted(found)[:SEGMENTS]]
        for found, length in zip(pairs, seconds, strict=True)
    ]


def _embeddings(folder: str | Path) -> Tensor:
    from safetensors import safe_open

    with safe_open(Path(folder) / "model.safetensors", framework="pt") as file:
        table: Tensor = file.get_tensor("forward_stack.model.embed_tokens.weight").float()
    return table
