"""Pass 1: the encoder's layers over one prompt, or over several short ones at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import torch

from qm_vllm.compress import Evidence, needs, row_norms
from qm_vllm.engine.agreement import over_ranks, together
from qm_vllm.engine.dense.runner import DenseRunner, Stream
from qm_vllm.engine.dense.taps import LayerRecord, Sink
from qm_vllm.engine.jobs.job_cache import JobCache
from qm_vllm.engine.messages import JobSpec
from qm_vllm.engine.stopwatch import Stopwatch
from qm_vllm.layers import WINDOW_QUERIES, window_layers


@dataclass
class Encoded:
    """What the pass leaves of one prompt.

    Attributes:
        states: [N, D] at the encoder's exit; set when the pass has ended.
        windows: records of the layers whose attention was read, by layer.
    """

    evidence: Evidence
    windows: dict[int, LayerRecord] = field(default_factory=dict)
    states: torch.Tensor = field(default_factory=lambda: torch.empty(0))


@dataclass(frozen=True)
class Context:
    """Rows that a prompt's see before them, in each layer.

    Attributes:
        count: P, how many.
        rows: gives a layer's keys, turned, and values: [P, KVH, D] each.
        table: angles of the prompt's own rows, from :meth:`DenseRunner.place`; None: they are at
            P, P + 1, ...
    """

    count: int
    rows: Callable[[int], tuple[torch.Tensor, torch.Tensor]]
    table: torch.Tensor | None


class EncoderPass:
    """Runs layers [0, E) in units of one layer and chunk.

    Several prompts lie one after the other in one chunk and attend to themselves alone. Rounding
    may then differ from that of each prompt's own pass: a matrix product of other height.

    Args:
        caches: of each spec, where its keys and values go; None with the prefill delivery.
        context: what one prompt alone is read over.

    Attributes:
        encoded: of each spec, in their order.
        spent: rows x layers of work done, over all prompts.
        clock: seconds of the whole pass.
        begun, done: whether a unit has run, and whether all have.
        failed: a unit raised; nothing here may be used.
    """

    def __init__(
        self, specs: Sequence[JobSpec], runner: DenseRunner, caches: Sequence[JobCache | None],
        context: Context | None = None,
    ) -> None:
        self.specs, self.runner, self.caches, self.context = specs, runner, caches, context
        self.encoded = [Encoded(Evidence(len(spec.token_ids))) for spec in specs]
        self.clock = Stopwatch(runner.device)
        self.spent, self.begun, self.done, self.failed = 0, False, False, False
        self._bounds = [0, *accumulate(spec.rows for spec in specs)]
        self._units = self._run()

    @property
    def rows(self) -> int:
        """Tokens of all prompts and hints."""
        return self._bounds[-1]

    def share(self, index: int) -> float:
        """The prompt's part of the pass's rows."""
        return self.specs[index].rows / self.rows

    def advance(self) -> int:
        """Do one unit of work. Returns its cost in rows x layers; 0 when the pass has ended."""
        self.begun = True
        try:
            cost = together(lambda: next(self._units, 0))
        except Exception:
            self.failed = True
            raise
        self.spent += cost
        self.done = cost == 0
        return cost

    def _run(self) -> Iterator[int]:
        runner, clock, first = self.runner, self.clock, self.specs[0]
        depth, inject = first.encoder_layers, self.caches[0] is not None
        with clock.phase("encoder"):
            ids = [token for spec in self.specs for token in spec.read_ids]
            stream = Stream(runner.embed(ids), self._bounds)
        if depth == 0:
            yield from self._score(stream)
        windows: list[int] = []
        if "attention" in needs(first.config):
            count = window_layers(first.config, len(runner.view.layers))
            windows = runner.window_layers(depth, count)
        for layer in range(depth):
            if layer in range(*first.score_layers):
                yield from self._score(stream)
            window = layer in windows
            record = runner.record_for(
                layer, self._bounds, rotated_keys=window, values=window and not inject,
                num_queries=WINDOW_QUERIES if window else 0, sink=self._sink(layer),
                before=self._before,
            )
            units = self._layer(layer, stream, record)
            yield from self.clock.timed("encoder", units)
            if window:
                self._look(layer, record, keep=not inject)
        with clock.phase("saliency"):
            for one in self.encoded if windows else ():
                one.evidence.attention = [over_ranks(one.evidence.attention)]
            for one, states in zip(self.encoded, self._own(stream.states), strict=True):
                one.states, one.evidence.norms = states, row_norms(states)

    @property
    def _before(self) -> int:
        return 0 if self.context is None else self.context.count

    def _layer(self, layer: int, stream: Stream, record: LayerRecord) -> Iterator[int]:
        if self.context is None:
            return self.runner.run_layer(layer, stream, record)
        before = self.context.rows(layer)
        return self.runner.run_layer(layer, stream, record, self.context.table, before)

    def _score(self, stream: Stream) -> Iterator[int]:
        config = self.specs[0].config
        wanted = needs(config)
        if not wanted & {"entropy", "incoming"}:
            return
        for one, states in zip(self.encoded, self._own(stream.states), strict=True):
            with self.clock.phase("saliency"):
                one.evidence.observe_layer(states, config.logit_scale, wanted)
            yield states.shape[0]

    def _own(self, rows: torch.Tensor) -> list[torch.Tensor]:
        """Each prompt's rows [N, D], without those of a hint behind it."""
        firsts = zip(self._bounds, self.specs, strict=False)
        return [rows[start : start + len(spec.token_ids)] for start, spec in firsts]

    def _sink(self, layer: int) -> Sink | None:
        """Gives each prompt's cache its rows of a chunk."""
        if self.caches[0] is None:
            return None

        def sink(start: int, keys: torch.Tensor, values: torch.Tensor) -> None:
            stop = start + keys.shape[0]
            for cache, (first, end) in zip(self.caches, pairwise(self._bounds), strict=True):
                low, high = max(first, start), min(end, stop)
                if cache is not None and low < high:
                    rows = slice(low - start, high - start)
                    cache.put(layer, low - first, keys[rows], values[rows])

        return sink

    def _look(self, layer: int, record: LayerRecord, *, keep: bool) -> None:
        """What the last queries of each prompt, or of its hint, see of it in this layer.

        Its keys and values are in the prompt's cache; without one they are kept.
        """
        parts = record.split(self._bounds)
        for one, own, spec in zip(self.encoded, parts, self.specs, strict=True):
            assert own.queries is not None
            own.queries = own.queries[-spec.window :]
            with self.clock.phase("saliency"):
                seen = self.runner.window_attention(layer, own)
                own_rows = slice(self._before, self._before + len(spec.token_ids))
                one.evidence.attention.append(seen.of_rows(own_rows))
            if not keep:
                own.rotated_keys = None
            one.windows[layer] = own


def alike(one: JobSpec, other: JobSpec) -> bool:
    """Whether two prompts can go through one pass: it captures the same of both."""
    def captured(spec: JobSpec) -> tuple[object, ...]:
        config = spec.config
        return (
            spec.encoder_layers, spec.score_layers, needs(config), config.delivery,
            config.window_layers, config.logit_scale,
        )

    return captured(one) == captured(other)


def gather(specs: Sequence[JobSpec], rows: int) -> list[list[int]]:
    """Which prompts go together: indices, in order of arrival, at most so many rows a group.

    A longer prompt stays alone.
    """
    groups: list[list[int]] = []
    for index, spec in enumerate(specs):
        for group in groups:
            size = sum(specs[member].rows for member in group)
            if size + spec.rows <= rows and alike(specs[group[0]], spec):
                group.append(index)
                break
        else:
            groups.append([index])
    return groups
