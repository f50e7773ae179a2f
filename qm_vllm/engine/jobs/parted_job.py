"""A compression job that reads its prompt in parts (:mod:`qm_vllm.engine.parts`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate, pairwise

import torch

from qm_vllm.compress import (
    Compressed,
    Evidence,
    finish,
    keep_order,
    score_tokens,
)
from qm_vllm.engine.dense.runner import DenseRunner
from qm_vllm.engine.jobs.compression_job import CompressionJob
from qm_vllm.engine.jobs.encoder_pass import Context, Encoded, EncoderPass
from qm_vllm.engine.jobs.job_cache import JobCache
from qm_vllm.engine.messages import JobSpec
from qm_vllm.engine.parts import TAIL, budgets, part_of
from qm_vllm.engine.upload import upload


class PartedJob(CompressionJob):
    """Holds one part's states, keys and values at a time, and the kept ones of all parts.

    The layers below E read a part over what was kept of those before it; those above see all that
    was kept, as in any other job.

    Args:
        cache: of the result. scratch: of one part after another.
    """

    alone = True

    def __init__(
        self, spec: JobSpec, runner: DenseRunner, cache: JobCache, scratch: JobCache
    ) -> None:
        super().__init__(part_of(spec, 0), runner, scratch)
        self.spec, self.cache, self.scratch = spec, cache, scratch
        self._later: list[EncoderPass] = []
        self._units = self._all_parts()

    @property
    def spent(self) -> int:
        return self._ahead + self.encoder.spent + self._done

    def _all_parts(self) -> Iterator[int]:
        assert self.cache is not None
        bounds, protected = list(pairwise(self.spec.parts)), self.spec.protected()
        kept_of = budgets(self.spec)
        total, before, found, passed = sum(kept_of), 0, [], self.encoder
        for index, (start, stop) in enumerate(bounds):
            if index:
                part = part_of(self.spec, index)
                passed = EncoderPass(
                    [part], self.runner, [self.scratch.emptied()],
                    self._context(before, start, part.rows, total),
                )
                self._later.append(passed)
                while cost := passed.advance():
                    yield cost
            with self._clock.phase("saliency"):
                one = self._choose_part(passed, index, protected[start:stop], kept_of[index])
            found.append(one)
            kept = one.kept if stop < len(self.spec.token_ids) else one.kept[:-1]
            table = self._table(kept + start, total)
            yield from self._lower_kv(kept, table, self.scratch, before)
            before += kept_of[index]
        self.scratch.emptied()
        self.cache.emptied()
        merged = self._joined(found)
        table = self._table(merged.kept[:-1], total)
        yield from self._upper_kv(merged.states[:-1], table)
        self.end(self._report(merged))

    def _context(self, before: int, start: int, rows: int, total: int) -> Context:
        """What was kept so far; positions go on where it ends, or are the prompt's own."""
        assert self.cache is not None
        table = self._table(torch.arange(start, start + rows), total)
        return Context(before, partial(self.cache.delivered, count=before), table)

    def _choose_part(
        self, passed: EncoderPass, index: int, protected: torch.Tensor, budget: int
    ) -> Compressed:
        """A part's own states and positions; what stands behind it is scored, too, and left out."""
        spec, seen = self.spec, passed.encoded[0]
        start, stop = spec.parts[index], spec.parts[index + 1]
        last, own, norms = stop == len(spec.token_ids), slice(stop - start), seen.evidence.norms
        config = replace(  # what a score leaves out at either end, because it stays in any case
            spec.config,
            protect_first=0 if index else spec.config.protect_first,
            protect_last=spec.config.protect_last if last else min(TAIL, spec.config.protect_last),
        )
        states, scores = seen.states[own], score_tokens(seen.evidence, config)[own]
        passed.encoded[0] = Encoded(Evidence(stop - start))
        first = protected
        if spec.kept is not None:
            first = torch.zeros(stop - start, dtype=torch.bool)
            first[[at - start for at in spec.kept if start <= at < stop]] = True
        order = keep_order(scores, upload(first, scores.device))
        evidence = Evidence(stop - start, norms=None if norms is None else norms[own])
        kept = order[:budget].sort().values
        return finish(states, evidence, scores, kept, spec.config, check=False)

    def _joined(self, found: Sequence[Compressed]) -> Compressed:
        """All parts as one; figures are means, weighted by the parts' tokens."""
        firsts = self.spec.parts[:-1]
        rows = [0, *accumulate(one.num_kept for one in found)]
        weights = torch.tensor(
            [one.num_tokens for one in found], dtype=torch.float64,
            device=found[0].measures.device,
        )
        measures = torch.stack([one.measures for one in found])
        return Compressed(
            states=torch.cat([one.states for one in found]),
            kept=torch.cat([one.kept + first for one, first in zip(found, firsts, strict=True)]),
            groups=torch.cat([one.groups + row for one, row in zip(found, rows, strict=False)]),
            scores=torch.cat([one.scores for one in found]),
            measures=(weights / weights.sum()) @ measures,
        )

    def _seconds(self) -> dict[str, float]:
        seconds = super()._seconds()
        for passed in self._later:
            for name, spent in passed.clock.seconds().items():
                seconds[name] = seconds.get(name, 0.0) + spent
        return seconds
