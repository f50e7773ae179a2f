"""One prompt's way through the encoder: score, choose, merge, and the KV of what is kept.

Pass 1 runs layers [0, E) over N tokens, pass 2 runs layers [E, L) over K states
(algorithm: docs/algorithm.md). Work is cut into units, so that a worker can stop after any.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch

from qm_vllm.compress import (
    AttentionError,
    Choice,
    Compressed,
    Evidence,
    choose,
    finish,
)
from qm_vllm.config import ConfigError
from qm_vllm.engine.agreement import OtherRankFailed, together
from qm_vllm.engine.agreement import gather as gather_ranks
from qm_vllm.engine.dense.runner import DenseRunner, Stream
from qm_vllm.engine.dense.taps import LayerRecord
from qm_vllm.engine.jobs.encoder_pass import Encoded, EncoderPass, gather
from qm_vllm.engine.jobs.job_cache import JobCache
from qm_vllm.engine.messages import JobResult, JobSpec
from qm_vllm.engine.stopwatch import Stopwatch
from qm_vllm.engine.upload import upload
from qm_vllm_patches.log import get_logger

logger = get_logger(__name__)


class CompressionJob:
    """Runs one :class:`JobSpec`; :attr:`result` is set when it has ended, well or badly.

    Attributes:
        cache: the job's blocks. At the end their first rows are keys and values of the K - 1
            positions that a request finds there, rotated for where vLLM will count them; the last
            kept token is left to vLLM, which samples from it. None with the prefill delivery.
        encoder: its pass through the layers below E, alone or with others (:func:`share_pass`).
        alone: it can go with no others.
    """

    alone = False

    def __init__(
        self, spec: JobSpec, runner: DenseRunner, cache: JobCache | None = None
    ) -> None:
        self.spec, self.runner, self.cache = spec, runner, cache
        self.encoder, self.index = EncoderPass([spec], runner, [cache]), 0
        self.result: JobResult | None = None
        self._ahead = self._done = 0
        self._clock = Stopwatch(runner.device)
        self._positions = spec.config.positions if self.inject else "compact"
        self._windows: dict[int, LayerRecord] = {}
        self._error: torch.Tensor | None = None
        self._units = self._after_encoder()

    @property
    def inject(self) -> bool:
        return self.spec.config.delivery == "inject"

    @property
    def spent(self) -> int:
        """Rows x layers of work done, from where the others stood when this one began."""
        own = self.encoder.spent * self.spec.rows // max(1, self.encoder.rows)
        return self._ahead + own + self._done

    def start_level(self, others: Iterable[CompressionJob]) -> None:
        """Begin where the one of the others stands that had least."""
        self._ahead = min((other.spent for other in others), default=0)

    def advance(self) -> int:
        """Do one unit of work. Returns its cost in rows x layers, of all jobs whose pass it is; 0
        when the job has ended, or when its shared pass failed and it goes on alone."""
        try:
            if not self.encoder.done:
                cost = self._encode()
                if cost or not self.encoder.done:
                    return cost
            cost = together(lambda: next(self._units, 0))
            self._done += cost
            return cost
        except Exception as error:
            if not isinstance(error, (ConfigError, OtherRankFailed)):
                logger.exception("qm_vllm: a compression job failed")
            self.end(JobResult(error=f"{type(error).__name__}: {error}"))
            return 0

    def end(self, result: JobResult) -> None:
        """Set the result and let go of everything else."""
        self.result, self._windows = result, {}
        self.encoder.encoded[self.index] = Encoded(Evidence(len(self.spec.token_ids)))

    def _encode(self) -> int:
        if self.encoder.failed:
            self.encoder, self.index = EncoderPass([self.spec], self.runner, [self.cache]), 0
        try:
            return self.encoder.advance()
        except Exception:
            if len(self.encoder.specs) == 1:
                raise
            logger.exception("qm_vllm: a shared pass failed; each of its prompts gets its own")
            return 0

    def _after_encoder(self) -> Iterator[int]:
        clock, spec, seen = self._clock, self.spec, self.encoder.encoded[self.index]
        states, evidence = seen.states, seen.evidence
        self._windows = seen.windows
        self.encoder.encoded[self.index] = Encoded(evidence)
        with clock.phase("saliency"):
            choice = self._choose(evidence)
            scores, kept = choice.scores, choice.kept
        with clock.phase("merge"):
            compressed = finish(states, evidence, scores, kept, spec.config, check=False)
        del states, seen
        if self.inject:
            table = self._table(kept[:-1], len(kept))
            yield from self._lower_kv(kept[:-1], table)
            yield from self._upper_kv(compressed.states[:-1], table)
        self.end(self._report(compressed))

    def _choose(self, evidence: Evidence) -> Choice:
        spec = self.spec
        choice = choose(
            evidence, spec.config, protected=spec.protected(), block_size=spec.block_size,
            errors=self._errors if self._windows else None, kept=spec.kept, upload=upload,
            check=False,
        )
        self._error, self._windows = choice.error, {}
        return choice

    def _errors(self, order: torch.Tensor, sizes: list[int]) -> torch.Tensor:
        """Relative attention errors [S] if the first tokens of ``order`` stay.

        What a hint reads of itself is no loss: it counts as kept, as it does where it is asked.
        """
        count, hint = len(self.spec.token_ids), len(self.spec.hint)
        if hint:
            order = torch.cat((torch.arange(count, count + hint, device=order.device), order))
            sizes = [size + hint for size in sizes]

        def own() -> torch.Tensor:
            parts = AttentionError.joined([
                self.runner.attention_error(layer, self._filled(layer, record), order, sizes)
                for layer, record in self._windows.items()
            ])
            return torch.cat((parts.lost, parts.energy[:, None]), 1)

        rows = gather_ranks(own)
        return AttentionError(rows[:, :-1], rows[:, -1]).relative()

    def _filled(self, layer: int, record: LayerRecord) -> LayerRecord:
        """The record with the layer's keys and values, read back if they are in the cache."""
        if self.cache is None:
            return record
        filled = LayerRecord(record.window)
        filled.queries = record.queries
        keys, filled.values = self.cache.whole(layer)
        filled.rotated_keys = self.runner.rotate(layer, keys)
        return filled

    def _table(self, kept: torch.Tensor, k: int) -> torch.Tensor | None:
        """Angles that leave kept tokens as far from the prompt's end as they were.

        vLLM goes on from position K - 1; the kept token i sits at kept_i - (N - K), which may
        be negative.

        Args:
            kept: positions in the prompt. k: K, how many are kept in all.
        """
        if self._positions == "compact" or k == len(self.spec.token_ids):
            return None
        table = self.runner.place(kept - (len(self.spec.token_ids) - k))
        if table is None:
            self._positions = "compact"
        return table

    def _lower_kv(
        self, rows: torch.Tensor, table: torch.Tensor | None, source: JobCache | None = None,
        start: int = 0,
    ) -> Iterator[int]:
        """Deliver kept rows of the layers below E, from row ``start`` of the result on.

        Where they lie in the result's own blocks, a layer's rows are read whole before its kept
        ones are written over them.
        """
        assert self.cache is not None
        source = source or self.cache
        for layer in range(self.spec.encoder_layers):
            with self._clock.phase("merge"):
                keys, values = source.whole(layer)
                keys = self.runner.rotate(layer, keys[rows], table, start=start)
                self.cache.deliver(
                    layer, keys, values[rows], start=start, in_parts=source is not self.cache
                )
        yield len(rows)

    def _upper_kv(self, states: torch.Tensor, table: torch.Tensor | None) -> Iterator[int]:
        assert self.cache is not None
        stream = Stream(states)
        for layer in range(self.spec.encoder_layers, len(self.runner.view.layers)):
            record = self.runner.record_for(layer, stream.bounds, rotated_keys=True, values=True)
            units = self.runner.run_layer(layer, stream, record, table)
            yield from self._clock.timed("upper", units)
            assert record.rotated_keys is not None
            assert record.values is not None
            self.cache.deliver(layer, record.rotated_keys, record.values)

    def _report(self, compressed: Compressed) -> JobResult:
        kept, (finite, *measured) = self._read(compressed)
        if not finite:
            raise ValueError("scores must be finite; check the states for NaN or infinity")
        seconds = self._seconds()
        names = ("gamma", "retained_norm", "reconstruction_error", "attention_error")
        figures = {
            "encoder_layers": self.spec.encoder_layers,
            "saliency": self.spec.config.effective_saliency,
            "positions": self._positions,
            **dict(zip(names, measured, strict=False)),
            "seconds": sum(seconds.values()),
            **{f"seconds_{name}": seconds.get(name, 0.0)
               for name in ("encoder", "saliency", "merge", "upper")},
        }
        details = None
        if self.spec.config.details:
            details = {
                "kept_indices": kept,
                "scores": [round(s, 4) for s in compressed.scores.tolist()],
                "groups": compressed.groups.tolist(),
            }
        return JobResult(kept, figures, details)

    def _seconds(self) -> dict[str, float]:
        """By phase; of a shared pass, this prompt's part of the rows."""
        seconds, share = self._clock.seconds(), self.encoder.share(self.index)
        for name, spent in self.encoder.clock.seconds().items():
            seconds[name] = seconds.get(name, 0.0) + share * spent
        return seconds

    def _read(self, compressed: Compressed) -> tuple[list[int], list[float]]:
        """Kept positions; whether all scores are finite, and the figures. All that the host
        reads of a job, in one go at its end, so that it never waits for the device before."""
        parts = [torch.isfinite(compressed.scores).all()[None], compressed.measures]
        if self._error is not None:
            parts.append(self._error[None])
        device = compressed.kept.device
        row = torch.cat([part.to(device, torch.float64) for part in (*parts, compressed.kept)])
        found, start = row.tolist(), row.shape[0] - compressed.num_kept
        return [int(position) for position in found[start:]], found[:start]


def share_pass(jobs: Sequence[CompressionJob], rows: int) -> None:
    """Let jobs that have not begun go through the encoder together, at most so many rows at once.

    Which ones is decided by their order and sizes alone: equal on all tensor-parallel ranks.
    """
    waiting = [job for job in jobs if not (job.alone or job.encoder.begun)]
    specs = [job.spec for job in waiting]
    for group in gather(specs, rows):
        shared = EncoderPass(
            [specs[member] for member in group], waiting[group[0]].runner,
            [waiting[member].cache for member in group],
        )
        for index, member in enumerate(group):
            waiting[member].encoder, waiting[member].index = shared, index
