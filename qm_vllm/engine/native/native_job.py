"""One prompt that vLLM prefills itself: its last queries are kept, then N positions become K.

In the step of the prompt's last token its keys and values are all in the paged cache. The queries
say which tokens stay, these are copied into the job's own blocks with their keys turned back by
N - K positions, and a request finds them there as it finds any prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from qm_vllm.compress import (
    Choice,
    Evidence,
    QueryAttention,
    choose,
    choose_for_heads,
    scores_of_heads,
    window_attention,
)
from qm_vllm.compress.head_choice import HEAD_QUERIES
from qm_vllm.config import ConfigError
from qm_vllm.engine.agreement import OtherRankFailed, over_ranks, together
from qm_vllm.engine.memory import AT_ONCE
from qm_vllm.engine.messages import JobResult, JobSpec
from qm_vllm.engine.native.blocks import first_block, split
from qm_vllm.engine.native.layers import NativeLayer
from qm_vllm.engine.stopwatch import Stopwatch
from qm_vllm.engine.upload import upload
from qm_vllm.layers import WINDOW_QUERIES, window_layers
from qm_vllm_patches.kv_cache import PagedCache, slots_of
from qm_vllm_patches.log import get_logger

logger = get_logger(__name__)


class NativeJob:
    """Runs one :class:`JobSpec` of the native delivery.

    Args:
        windows: of each KV-cache group whose older blocks are let go, its sliding window.

    Attributes:
        first: position of the first query that is kept.
        watched: names of the layers whose queries are kept. scored: those of them that say which
            tokens stay.
        problem: what went wrong while the prompt was looked at.
    """

    def __init__(
        self, spec: JobSpec, layers: Sequence[NativeLayer], cache: PagedCache,
        windows: Sequence[int | None], device: torch.device,
    ) -> None:
        self.spec, self.layers, self.cache, self.device = spec, layers, cache, device
        self.windows = windows
        self.first = max(0, len(spec.token_ids) - WINDOW_QUERIES)
        self.queries: dict[str, torch.Tensor] = {}
        self._seen: dict[str, int] = {}
        self.problem: str | None = None
        whole = [one.layer.name for one in layers if one.window is None]
        below = {one.layer.name for one in layers[: spec.encoder_layers]}
        count = window_layers(spec.config, len(layers))
        self.scored = frozenset([name for name in whole if name in below][-count:])
        watched = frozenset(whole) if spec.heads_choose else self.scored
        self.watched = watched if spec.looks else frozenset()

    def see(self, name: str, rows: torch.Tensor, start: int) -> None:
        """Keep what a step computed of the last queries.

        Args:
            rows: [T, H, D], queries of the positions from ``start`` on.
        """
        low, stop = max(start, self.first), start + rows.shape[0]
        if name not in self.watched or stop <= low:
            return
        if name not in self.queries:
            count = len(self.spec.token_ids) - self.first
            self.queries[name] = rows.new_empty((count, *rows.shape[1:]))
            self._seen[name] = self.first
        self.queries[name][low - self.first : stop - self.first] = rows[low - start :]
        # A prompt that was preempted begins again; a gap shows at the end.
        self._seen[name] = stop if low <= self._seen[name] else self.first

    def run(self, blocks: Sequence[Sequence[int]]) -> JobResult:
        """Choose and move.

        Args:
            blocks: of the prefilled prompt, of each KV-cache group.
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
        source = [self._ids(group) for group in blocks]
        choice = None
        if spec.looks:
            with clock.phase("saliency"):
                choice = self._choose(self._evidence(source))
        kept = torch.tensor(spec.kept) if choice is None or spec.kept else choice.kept
        kept = kept.to(self.device)
        with clock.phase("move"):
            self._move(source, kept, self._shared(choice, kept))
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
        return JobResult(found, figures, details)

    def _ids(self, blocks: Sequence[int]) -> torch.Tensor:
        return upload(torch.tensor(list(blocks), dtype=torch.long), self.device)

    def _evidence(self, source: Sequence[torch.Tensor]) -> Evidence:
        """What the last queries look at, over the heads of all watched layers and ranks."""
        count = len(self.spec.token_ids)
        if not self.scored:  # all layers have sliding windows: the newest stay in any case
            age = torch.arange(1, count + 1, device=self.device) / count
            return Evidence(count, attention=[QueryAttention(age, age, age.square())])
        missing = [name for name in self.watched if self._seen.get(name) != count]
        if self.problem:
            raise RuntimeError(self.problem)
        if missing:
            raise RuntimeError(
                f"the queries of the prompt's end were not seen in {min(missing)}: a step ran "
                "inside a CUDA graph"
            )
        seen = []
        for one in self.layers:
            attn = one.layer.attn
            if attn.name in self.scored:
                keys = self.cache.keys(one.layer.module, source[one.layer.group], count)
                seen.append(window_attention(
                    self.queries[attn.name], keys, attn.scale, AT_ONCE, attn.soft_cap
                ))
        return Evidence(count, attention=[over_ranks(seen)])

    def _choose(self, evidence: Evidence) -> Choice:
        spec = self.spec
        return choose(
            evidence, spec.config, protected=spec.protected(), block_size=spec.block_size,
            upload=upload, check=False,
        )

    def _shared(self, choice: Choice | None, kept: torch.Tensor) -> torch.Tensor | None:
        """Of the kept positions those that all heads keep; None: all of them."""
        count, k = len(self.spec.token_ids), kept.shape[0]
        if choice is None or not self.spec.heads_choose or k == count:
            return None
        number = max(round((1 - self.spec.config.head_share) * k), choice.protected)
        # The best of what was kept, also where it was chosen in an earlier run.
        stays = torch.zeros(count, dtype=torch.bool, device=kept.device).index_fill(0, kept, True)
        first = stays[choice.order].long().sort(descending=True, stable=True).indices[:number]
        return None if number >= k else choice.order[first]

    def _move(
        self, source: Sequence[torch.Tensor], kept: torch.Tensor, shared: torch.Tensor | None
    ) -> None:
        """Copy K - 1 positions into the job's own blocks; the last token is left to vLLM."""
        spec, size = self.spec, self.cache.block_size
        count, k = len(spec.token_ids), kept.shape[0]
        known: dict[tuple[int, bool], dict[tuple[Any, ...], torch.Tensor]] = {}
        own = [self._ids(blocks) for blocks in split(spec.blocks, spec.group_blocks)]
        for one in self.layers:
            module, group, first = one.layer.module, one.layer.group, 0
            positions = kept[:-1]
            if one.window is not None:
                # The window counts positions, so here the newest stay, whatever was chosen.
                first = max(0, k - (self.windows[group] or k))
                positions = torch.arange(first, k - 1, device=self.device) + (count - k)
            if shared is not None and one.window is None:
                keys, values = self._own_rows(one, source[group], k, shared)
            else:
                found = known.setdefault((group, one.window is None), {})
                keys, values = self.cache.rows(module, source[group], positions, found)
            keys = one.back(keys, count - k)
            offset = first_block(k, self.windows[group], size) * size
            slots = slots_of(own[group], size, first - offset, k - 1 - offset)
            self.cache.write(module, keys.contiguous(), values.contiguous(), slots)

    def _own_rows(
        self, one: NativeLayer, source: torch.Tensor, k: int, shared: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [K - 1, KVH, D] of one layer, of other positions for each KV head."""
        attn, config = one.layer.attn, self.spec.config
        keys, values = self.cache.read(one.layer.module, source, len(self.spec.token_ids))
        scores = scores_of_heads(
            self.queries[attn.name][-HEAD_QUERIES:], keys, values, attn.scale, AT_ONCE,
            attn.soft_cap, (config.protect_first, config.protect_last),
        )
        # The last token is protected, so it is the last of each head.
        rows = choose_for_heads(scores, shared, k)[:, :-1].T
        index = rows[..., None].expand(-1, -1, keys.shape[-1])
        return keys.gather(0, index), values.gather(0, index)
