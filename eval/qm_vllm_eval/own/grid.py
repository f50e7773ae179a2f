"""The grid of a study over a user's own prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

from qm_vllm_eval.engines.base import Cell, Engine
from qm_vllm_eval.methods import Method
from qm_vllm_eval.own.prompts import LENGTH, OwnPrompt
from qm_vllm_eval.sample import Sample, sample_id
from qm_vllm_eval.study.grid import Unusable, cells_of

NO_QUESTION = "it has no question that could be hidden while it is compressed"
NO_ANSWER = "the model's own answer to the full prompt is empty: nothing can be compared with it"


@dataclass(frozen=True)
class OwnGrid:
    """What to measure: every prompt with every method and ratio.

    Attributes:
        visible: query modes, True and/or False.
        told: the model's own answers so far, as token ids, by the prompt's index.
    """

    prompts: tuple[OwnPrompt, ...]
    methods: tuple[Method, ...]
    ratios: tuple[float, ...]
    visible: tuple[bool, ...] = (True,)
    told: dict[int, list[int]] = field(default_factory=dict, repr=False, compare=False)

    def cells(self) -> list[Cell]:
        """Every method with every ratio that it has."""
        return cells_of(self.methods, self.ratios)

    def size(self) -> int:
        """Rows of the whole grid."""
        return len(self.cells()) * len(self.prompts) * len(self.visible)

    def sample_makers(self) -> Iterator[tuple[str, Callable[[Engine], Sample]]]:
        """The id of each sample and what makes it."""
        for prompt in self.prompts:
            for visible in self.visible:
                about = prompt.sample
                name = sample_id(about.task, LENGTH, about.split, about.index, visible)
                yield name, partial(self._sample, prompt, visible, name)

    def _sample(self, prompt: OwnPrompt, visible: bool, name: str, engine: Engine) -> Sample:
        asked = replace(prompt.sample, sample_id=name, query_visible=visible)
        if not visible and not asked.question:
            raise Unusable(NO_QUESTION, asked, prompt.tokens)
        if not prompt.is_own:
            return asked
        if asked.index not in self.told:  # equal whenever it is asked again: decoding is greedy
            self.told[asked.index] = engine.answer(prompt.sample, prompt.reply)
        ids = self.told[asked.index]
        if not ids:
            raise Unusable(NO_ANSWER, asked, prompt.tokens)
        return replace(asked, target=engine.tokenizer.decode(ids), target_ids=tuple(ids))
