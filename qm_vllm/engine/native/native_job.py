"""One prompt that vLLM prefills itself: its last queries are kept, then N positions become K.

In the step of the prompt's last token its keys and values are all in the paged cache. The queries
say which tokens stay, these are copied into the job's own blocks with their keys turned so that the
prompt's last position is K - 1, and a request finds them there as it finds any prefix. A hint is
read behind the prompt, and its queries look, too: then the choice is made in the step of the hint's
last token.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch

from qm_vllm.compress import (
    Choice,
    Evidence,
    HeadOrder,
    choose,
    choose_for_heads,
    end_in_every_head,
    needs,
    scores_of_heads,
)
from qm_vllm.config import ConfigError
from qm_vllm.engine.agreement import OtherRankFailed, together
from qm_vllm.engine.memory import AT_ONCE, most_kept
from qm_vllm.engine.messages import JobResult, JobSpec
from qm_vllm.engine.native import prompt_evidence
from qm_vllm.engine.native.blocks import first_blocks, split
from qm_vllm.engine.native.layers import NativeLayer
from qm_vllm.engine.stopwatch import Stopwatch
from qm_vllm.engine.upload import upload
from qm_vllm.layers import window_layers
from qm_vllm_patches.kv_cache import PagedCache, slots_of
from qm_vllm_patches.log import get_logger

logger = get_logger(__name__)


class _Order(NamedTuple):
    """All positions of a prompt, those to keep first, and how heads that choose see them."""

    positions: torch.Tensor
    heads: HeadOrder | None


class NativeJob:
    """Runs one :class:`JobSpec` of the native delivery.

    Args:
        windows: of each KV-cache group whose older blocks are let go, its sliding window.

    Attributes:
        first: position of the first query that is kept.
        scored: names of the layers whose queries say which tokens stay.
        watched: those of them whose queries are kept.
        last: position of the prompt's last token: N - 1, or less if its images take fewer positions
            than they have tokens.
        problem: what went wrong while the prompt was looked at.
    """

    def __init__(
        self, spec: JobSpec, layers: Sequence[NativeLayer], cache: PagedCache,
        windows: Sequence[int | None], device: torch.device,
    ) -> None:
        self.spec, self.layers, self.cache, self.device = spec, layers, cache, device
        self.windows = windows
        self.first = spec.rows - spec.window
        self.last = len(spec.token_ids) - 1
        self.queries: dict[str, torch.Tensor] = {}
        self._seen: dict[str, int] = {}
        self.problem: str | None = None
        self._newest_moved = False
        whole = [one.layer.name for one in layers if one.window is None]
        below = {one.layer.name for one in layers[: spec.encoder_layers]}
        count = window_layers(spec.config, len(layers))
        self.scored = frozenset([name for name in whole if name in below][-count:])
        looks = spec.looks and "attention" in needs(spec.config)
        self.watched = self.scored if looks else frozenset()

    def see(self, name: str, rows: torch.Tensor, start: int) -> None:
        """Keep what a step computed of the last queries.

        Args:
            rows: [T, H, D], queries of the positions from ``start`` on.
        """
        low, stop = max(start, self.first), start + rows.shape[0]
        if name not in self.watched or stop <= low:
            return
        if name not in self.queries:
            self.queries[name] = rows.new_empty((self.spec.window, *rows.shape[1:]))
            self._seen[name] = self.first
        self.queries[name][low - self.first : stop - self.first] = rows[low - start :]
        # A prompt that was preempted begins again; a gap shows at the end.
        self._seen[name] = stop if low <= self._seen[name] else self.first

    def pass_prompt(self, blocks: Sequence[Sequence[int]]) -> None:
        """The prompt's last token was computed, and its hint is still to come: move what sliding
        windows keep, which is known before anything is chosen.

        Once the hint is read vLLM may have let go of the oldest of it.

        Args:
            blocks: of what was read so far, of each KV-cache group.
        """
        try:
            with torch.inference_mode():
                self._move_newest([self._ids(group) for group in blocks], self._count_kept())
            self._newest_moved = True
        except Exception as error:
            logger.exception("qm_vllm: compacting a prompt's sliding windows failed")
            self.problem = f"{type(error).__name__}: {error}"

    def run(self, blocks: Sequence[Sequence[int]]) -> JobResult:
        """Choose and move.

        Args:
            blocks: of all that was read, of each KV-cache group.
        """
        try:
            return together(lambda: self._run(blocks))
        except Exception as error:
            if not isinstance(error, (ConfigError, OtherRankFailed)):
                logger.exception("qm_vllm: compacting a prompt failed")
            return JobResult(error=f"{type(error).__name__}: {error}")

    @torch.inference_mode()
    def _run(self, blocks: Sequence[Sequence[int]]) -> JobResult:
        clock, spec = Stopwatch(self.device), self.spec
        if self.problem:
            raise RuntimeError(self.problem)
        source = [self._ids(group) for group in blocks]
        choice = None
        if spec.looks:
            with clock.phase("saliency"):
                choice = self._choose(self._evidence(source))
        kept = torch.tensor(spec.kept) if choice is None or spec.kept else choice.kept
        kept = kept.to(self.device)
        order = self._order(choice, kept)
        with clock.phase("move"):
            if not self._newest_moved:
                self._move_newest(source, kept.shape[0])
            self._move(source, kept, order)
        self.queries.clear()
        finite = torch.ones(1) if choice is None else torch.isfinite(choice.scores).all()[None]
        valid, *found = torch.cat((finite.to(kept), kept)).tolist()  # the host waits once
        if not valid:
            raise ValueError("scores must be finite; check the states for NaN or infinity")
        seconds = clock.seconds()
        figures = {
            "saliency": spec.config.effective_saliency,
            "positions": spec.config.positions,
            "seconds": sum(seconds.values()),
            **{f"seconds_{name}": seconds.get(name, 0.0) for name in ("saliency", "move")},
        }
        details = None
        if spec.config.details and choice is not None:
            scores = [round(score, 4) for score in choice.scores.tolist()]
            details = {"kept_indices": found, "scores": scores}
            if spec.group_kept:
                others = self._best(order, min(spec.group_kept))
                details["kept_indices_others"] = others.tolist()
        return JobResult(found, figures, details)

    @cached_property
    def _own(self) -> list[torch.Tensor]:
        """Ids of the job's own blocks, of each KV-cache group."""
        return [self._ids(blocks) for blocks in split(self.spec.blocks, self.spec.group_blocks)]

    def _ids(self, blocks: Sequence[int]) -> torch.Tensor:
        return upload(torch.tensor(list(blocks), dtype=torch.long), self.device)

    def _evidence(self, source: Sequence[torch.Tensor]) -> Evidence:
        count, rows = len(self.spec.token_ids), self.spec.rows
        if not self.scored:
            return prompt_evidence.of_age(count, self.device)
        if "leverage" in needs(self.spec.config):
            return prompt_evidence.of_keys(self.layers, self.cache, source, count, self.device)
        missing = [name for name in self.watched if self._seen.get(name) != rows]
        if missing:
            raise RuntimeError(
                f"the queries of the prompt's end were not seen in {min(missing)}: a step ran "
                "inside a CUDA graph"
            )
        return prompt_evidence.of_queries(
            self.queries, self.layers, self.cache, source, count, rows
        )

    def _choose(self, evidence: Evidence) -> Choice:
        spec = self.spec
        return choose(
            evidence, spec.config, protected=spec.protected(), block_size=spec.block_size,
            k=max(spec.group_kept, default=None), upload=upload, check=False,
        )

    def _order(self, choice: Choice | None, kept: torch.Tensor) -> _Order | None:
        """What layers and heads that do not keep the same begin with; None: all do."""
        count, k = len(self.spec.token_ids), kept.shape[0]
        if choice is None or (not self.spec.group_kept and not (
            self.spec.heads_choose and choice.protected < k < count
        )):
            return None
        # What was kept comes first, also where it was chosen in an earlier run.
        stays = torch.zeros(count, dtype=torch.bool, device=kept.device).index_fill(0, kept, True)
        first = stays[choice.order].long().sort(descending=True, stable=True).indices
        positions, heads, spec = choice.order[first], None, self.spec
        if spec.heads_choose:
            everywhere = spec.protected(last=end_in_every_head(spec.config))
            heads = HeadOrder.of(positions, spec.protected(), everywhere, upload)
        return _Order(positions, heads)

    def _count_kept(self) -> int:
        """K, which is known before anything is chosen."""
        spec, count = self.spec, len(self.spec.token_ids)
        if spec.kept is not None:
            return len(spec.kept)
        floor = int(spec.protected().sum())
        if spec.group_kept:
            return max(spec.group_kept)
        assert spec.block_size is not None
        return most_kept(spec.config, count, floor, spec.block_size)

    def _move_newest(self, source: Sequence[torch.Tensor], k: int) -> None:
        """Copy what sliding windows keep into the job's own blocks.

        A window counts positions, so the newest stay there, whatever is chosen elsewhere.
        """
        known: list[dict[tuple[Any, ...], torch.Tensor]] = [{} for _ in source]
        for one in (each for each in self.layers if each.window is not None):
            group = one.layer.group
            first = max(0, k - (self.windows[group] or k))
            newest = torch.arange(first, k - 1, device=self.device)
            positions = newest + (len(self.spec.token_ids) - k)
            rows = self.cache.rows(one.layer.module, source[group], positions, known[group])
            self._write(one, *rows, k, first)

    def _move(
        self, source: Sequence[torch.Tensor], kept: torch.Tensor, order: _Order | None
    ) -> None:
        """Copy K - 1 positions into the job's own blocks; the last token is left to vLLM."""
        known: list[dict[tuple[Any, ...], torch.Tensor]] = [{} for _ in source]
        for one in (each for each in self.layers if each.window is None):
            group, k = one.layer.group, kept.shape[0]
            own = self.spec.group_kept[group] if self.spec.group_kept else k
            if order is not None and order.heads is not None:
                rows = self._own_rows(one, source[group], own, order.heads)
            else:
                best = kept if own == k else self._best(order, own)
                rows = self.cache.rows(one.layer.module, source[group], best[:-1], known[group])
            self._write(one, *rows, k, k - own)

    def _write(
        self, one: NativeLayer, keys: torch.Tensor, values: torch.Tensor, k: int, first: int = 0
    ) -> None:
        """Put a layer's rows at the positions ``[first, K - 1)``, keys as far from the last.

        That is as far on every axis along which a model with images counts, so the turn is one.
        """
        size, group = self.cache.block_size, one.layer.group
        keys = one.back(keys, self.last + 1 - k)
        own = self.spec.group_kept
        offset = first_blocks(k, self.windows, size, own)[group] * size
        slots = slots_of(self._own[group], size, first - offset, k - 1 - offset)
        self.cache.write(one.layer.module, keys.contiguous(), values.contiguous(), slots)

    @staticmethod
    def _best(order: _Order | None, k: int) -> torch.Tensor:
        """The first K of the order, strictly increasing."""
        assert order is not None
        return order.positions[:k].sort().values

    def _own_rows(
        self, one: NativeLayer, source: torch.Tensor, k: int, order: HeadOrder
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [K - 1, KVH, D] of one layer, of other positions for each KV head."""
        attn, rows = one.layer.attn, len(order.positions)
        assert one.habits is not None
        keys, values = self.cache.read(one.layer.module, source, rows)
        scores = scores_of_heads(
            one.queries_at(self.last + 1), keys, values, attn.scale, AT_ONCE, attn.soft_cap
        )
        share = self.spec.config.head_share
        kept = choose_for_heads(scores, order, one.habits.looking, k, share)
        # The last token stays in every head, so it is the last of each.
        index = kept[:, :-1].T[..., None].expand(-1, -1, keys.shape[-1])
        return keys.gather(0, index), values.gather(0, index)
