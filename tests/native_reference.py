"""What the native delivery must compute, on transformers alone: no cache, no turned keys.

The model reads the whole prompt with its own attention; then it goes on from the rows that stay,
each at its natural position. Distances decide in RoPE, so this equals rows that moved.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from qm_vllm import QuickMergeConfig
from qm_vllm.compress import (
    Choice,
    Evidence,
    QueryAttention,
    choose,
    kept_places,
    protected_positions,
    run_twice,
)
from qm_vllm.compress.head_choice import LOOKING_UP_SHARE
from qm_vllm.compress.head_habits import LOOKING_UP
from qm_vllm.compress.leverage import RIDGE
from qm_vllm.layers import WINDOW_QUERIES, encoder_depth, window_layers
from tests.rows_attention import ROWS, Rows

CLOSE = 3
"""Places in the order of tokens by which rounding moves one that ranks like others."""


@dataclass(frozen=True)
class OwnChoice:
    """Of one layer: places [KVH, N] float64 (lower = keep) of the tokens, by which heads choose."""

    places: torch.Tensor

    def best(self, k: int) -> list[list[int]]:
        """K positions of each head, in order, without the last."""
        return self.places.topk(k, largest=False).indices.sort().values[:, :-1].tolist()


@dataclass(frozen=True)
class Continuation:
    """Kept positions, greedy tokens with their log probabilities, and each one's lead in logits.

    Attributes:
        close: positions of which some might as well stay and others not: which of two that rank
            alike comes first depends on a processor's rounding.
        others, close_others: the same of layers that keep less than others.
        again: what follows if others stay.
        heads: what was chosen of, by each layer whose heads choose.
        sizes: how many positions each layer keeps, where they differ.
    """

    kept: list[int]
    tokens: list[int]
    logprobs: list[float]
    leads: list[float]
    close: frozenset[int] = frozenset()
    others: list[int] = field(default_factory=list)
    close_others: frozenset[int] = frozenset()
    again: Callable[[torch.Tensor, list[int]], Continuation] | None = None
    heads: dict[int, OwnChoice] = field(default_factory=dict)
    sizes: dict[int, int] = field(default_factory=dict)

    def of(self, kept: list[int], others: list[int] | None = None) -> Continuation:
        """What follows where these positions stayed; itself if that is another choice.

        Args:
            others: in layers that keep less than others.
        """
        others = self.others if others is None else others
        exchanged = set(kept) ^ set(self.kept), set(others) ^ set(self.others)
        sizes = (len(kept), len(others)) == (len(self.kept), len(self.others))
        near = exchanged[0] <= self.close and exchanged[1] <= self.close_others
        if not any(exchanged) or not near or not sizes:
            return self
        assert self.again is not None
        return self.again(torch.tensor(kept), others)

    def reported(self, report: dict[str, Any]) -> Continuation:
        """What follows where those positions stayed that a report with details names."""
        details = report["details"]
        want = self.of(details["kept_indices"], details.get("kept_indices_others"))
        assert details["kept_indices"] == want.kept
        assert details.get("kept_indices_others", []) == want.others
        return want

    def check(self, found: Any, least: int) -> None:
        """Compare an engine's answer and its log probabilities, as far as rounding decides nothing.

        Args:
            found: a completion of vLLM's. least: tokens that must be decided.
        """
        count = self.decided()
        logprobs = [step[token].logprob for step, token in
                    zip(found.logprobs, found.token_ids, strict=True)]
        assert count >= least
        assert list(found.token_ids)[:count] == self.tokens[:count]
        pairs = list(zip(logprobs[:count], self.logprobs[:count], strict=True))
        assert all(one == pytest.approx(other, abs=4e-3) for one, other in pairs), pairs

    def decided(self, least: float = 2e-4) -> int:
        """Tokens before the first that rounding alone might have changed."""
        ties = [step for step, lead in enumerate(self.leads) if lead < least]
        return min(ties, default=len(self.tokens))


class NativeReference:
    """One model in float32."""

    def __init__(self, folder: str) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="rows"
        ).eval()

    def _step(self, rows: Rows, ids: list[int], start: int) -> torch.Tensor:
        return self._run(rows, ids, torch.arange(start, start + len(ids)))

    def _run(self, rows: Rows, ids: list[int], positions: torch.Tensor) -> torch.Tensor:
        """Logits behind the last of the ids, each at its position."""
        ROWS[0], rows.now = rows, positions
        out = self.model(
            torch.tensor([ids]), position_ids=rows.now[None], use_cache=False, logits_to_keep=1
        )
        return out.logits[0, -1].float()

    @torch.inference_mode()
    def generate(
        self, ids: list[int], *, block_size: int, max_tokens: int,
        special: tuple[int, ...] = (), first: bool = False,
        own: dict[int, list[list[int]]] | None = None, hint: tuple[int, ...] = (), **options,
    ) -> Continuation:
        """Greedy continuation of a prompt of which some positions stay.

        Args:
            first: the first token is that of the whole prompt.
            own: positions that the KV heads of layers keep, where they choose, but the last one.
            hint: ids behind the prompt whose attention counts, and whose own positions do not;
                alone if the query is not visible.
        """
        given = {"head_share": 0.0, "delivery": "native", **options}
        config, count = QuickMergeConfig(**given), len(ids)
        rows = Rows()
        logits = self._step(rows, [*ids, *hint], 0)
        depth = encoder_depth(config, len(rows.keys))
        whole = [layer for layer in range(depth) if not rows.windows[layer]]
        whole = whole[-window_layers(config, len(rows.keys)):]
        age = torch.arange(1, count + 1) / count
        evidence = Evidence(
            count, attention=[QueryAttention(age, age, age.square())], leverage=age
        )
        if whole and not config.query_visible and not hint:
            evidence.leverage = self._standing_out(rows, count)
        elif whole:
            last = WINDOW_QUERIES if config.query_visible else len(hint)
            evidence.attention = [
                QueryAttention.of(rows.weights[layer][:, -last:, :count]) for layer in whole
            ]
        named = [i for i, one in enumerate(ids) if one in special]
        protected = protected_positions(config, count, special=named)
        everywhere = protected_positions(
            config, count, special=named, last=1 if config.query_visible else None
        )
        choice = choose(evidence, config, protected=protected, block_size=block_size)
        begin, sizes = logits if first else None, {}
        if config.layer_share:
            sizes = self._of_layers(choice, count, config.layer_share, block_size)
            choice = choose(evidence, config, protected=protected, k=max(sizes.values()))
        end = (protected & ~everywhere).nonzero().flatten().tolist()
        heads = self._of_heads(rows, choice, config.head_share, end) if config.head_share else {}
        if own is None:
            own = {
                layer: each.best(sizes.get(layer, choice.k)) for layer, each in heads.items()
            }
        few = min(sizes.values(), default=0)

        @torch.inference_mode()
        def again(kept: torch.Tensor, others: list[int]) -> Continuation:
            fewer = {
                layer: [others[:-1]] * rows.keys[layer].shape[1]
                for layer, size in sizes.items() if size == few
            }
            after = self._go_on(rows, ids, kept, fewer | own, max_tokens, begin)
            return replace(after, others=others)

        return replace(with_ties(choice, again, few), heads=heads, sizes=sizes)

    def _of_layers(self, choice: Choice, count: int, share: float, block: int) -> dict[int, int]:
        """How many positions each layer keeps if a third of them, those that look things up most,
        get this share of all, to whole blocks: all that is possible is tried."""
        back = self._run_twice(count)[2]
        layers = sorted(back, key=lambda layer: -max(back[layer]))
        each = {6: 2, 5: 1, 4: 1, 3: 1, 2: 1}[len(layers)]
        many, few = layers[:each], layers[each:]
        found = []
        for large in range(choice.k, count + 1, block):
            small, rest = divmod(choice.k * len(layers) - large * len(many), len(few))
            fits = small >= max(choice.protected, block + 1) and (large - small) % block == 0
            if fits and not rest:
                off = abs(large * len(many) / choice.k / len(layers) - share)
                found.append((off, large, small))
        _, large, small = min(found)
        return dict.fromkeys(many, large) | dict.fromkeys(few, small)

    def _of_heads(
        self, rows: Rows, choice: Choice, share: float, end: list[int]
    ) -> dict[int, OwnChoice]:
        """What each layer that sees all positions chooses by, in float64, one head at a time.

        Args:
            end: protected positions that stay in heads that look things up.
        """
        habits, places, looking = self._habits(len(choice.order))
        found = {}
        for layer, heads in looking.items():
            queries = habits.queries[layer][:, places]
            ways = [
                (min(share, LOOKING_UP_SHARE), []) if one >= 1 else (share * (1 - one / 2), end)
                for one in heads
            ]
            found[layer] = OwnChoice(self._places(rows, layer, queries, choice, ways))
        return found

    def _habits(self, count: int) -> tuple[Rows, list[int], dict[int, list[float]]]:
        """A run read twice behind so many tokens, which of its queries stand for any, and how much
        KV heads of the layers that see all positions look things up: 1 the least of an eighth."""
        habits, places, back = self._run_twice(count)
        every = sorted((one for heads in back.values() for one in heads), reverse=True)
        least = every[max(1, round(len(every) / LOOKING_UP)) - 1]
        return habits, places, {
            layer: [one / least for one in heads] for layer, heads in back.items()
        }

    def _run_twice(self, count: int) -> tuple[Rows, list[int], dict[int, list[float]]]:
        vocabulary = self.model.config.get_text_config().vocab_size
        ids, habits = run_twice(vocabulary), Rows()
        places = list(kept_places(len(ids) // 2))
        # Read where its queries are wanted: behind the prompt. Distances are all that RoPE sees.
        self._step(habits, ids, count - places[0])
        whole = [layer for layer in habits.keys if not habits.windows[layer]]
        return habits, places, {layer: self._looks_back(habits, layer) for layer in whole}

    def _standing_out(self, rows: Rows, count: int) -> torch.Tensor:
        """What least squares over a head's keys cannot tell of each, in float64."""
        total = torch.zeros(count, dtype=torch.float64)
        for layer, heads in self._habits(count)[2].items():
            for head in (i for i, one in enumerate(heads) if one >= 1):
                keys = rows.keys[layer][0, head, :count].double()
                keys = keys - keys.mean(0)
                gram = keys.T @ keys
                gram += RIDGE * gram.trace() / len(gram) * torch.eye(len(gram))
                own = (keys * torch.linalg.solve(gram, keys.T).T).sum(1)
                own *= rows.values[layer][0, head, :count].double().norm(dim=1)
                total += (own - own.mean()) / own.std(unbiased=False)
        return total.float()

    def _looks_back(self, habits: Rows, layer: int) -> list[float]:
        """The share of its attention that each KV head of a run read twice pays to its first
        reading."""
        scale, cap = habits.scales[layer]
        queries, keys = habits.queries[layer].double(), habits.keys[layer][0].double()
        each, half = len(queries) // len(keys), queries.shape[1] // 2
        found = []
        for head in range(len(queries)):
            paid = 0.0
            for token in range(half - 1):  # the last has none behind it
                logits = keys[head // each, : half + token + 1] @ queries[head, half + token]
                logits = logits * scale
                weights = (torch.tanh(logits / cap) * cap if cap else logits).softmax(0)
                paid += float(weights[token] + weights[token + 1])
            found.append(paid / (half - 1))
        return [max(found[i : i + each]) for i in range(0, len(found), each)]

    def _places(
        self, rows: Rows, layer: int, queries: torch.Tensor, choice: Choice,
        ways: list[tuple[float, list[int]]],
    ) -> torch.Tensor:
        """Places of all tokens, by each head's share and what need not stay of the protected."""
        scale, cap = rows.scales[layer]
        count = len(choice.order)
        keys, values = (part[layer][0, :, :count].double() for part in (rows.keys, rows.values))
        each, result = len(queries) // len(keys), []
        order = choice.order.tolist()
        for head, (share, loose) in enumerate(ways):
            logits = queries[head * each : (head + 1) * each].double() @ keys[head].T * scale
            weights = (torch.tanh(logits / cap) * cap if cap else logits).softmax(-1)
            score = (weights.mean(1).sum(0) * values[head].norm(dim=1)).tolist()
            share, free = min(share, 1 - 1e-6), order[choice.protected :] + loose
            own = {one: i for i, one in enumerate(sorted(free, key=lambda j: -score[j]))}
            place = torch.full((count,), -1.0, dtype=torch.float64)
            for turn, one in enumerate(free):
                place[one] = min(own[one] / share, turn / (1 - share))
            result.append(place)
        return torch.stack(result)

    def _go_on(
        self, rows: Rows, ids: list[int], kept: torch.Tensor, own: dict[int, list[list[int]]],
        max_tokens: int, begin: torch.Tensor | None,
    ) -> Continuation:
        after, count = Rows(), len(ids)
        newest = torch.arange(count - len(kept), count - 1)
        for layer in rows.keys:
            stay = newest if rows.windows[layer] else kept[:-1]
            places = own.get(layer, [stay.tolist()] * rows.keys[layer].shape[1])
            after.keys[layer], after.values[layer] = (
                torch.stack([part[0, head, at] for head, at in enumerate(places)])[None]
                for part in (rows.keys[layer], rows.values[layer])
            )
            # All stand before what follows, so which of them they are says nothing but that.
            after.positions[layer] = stay[: len(places[0])]
            after.windows[layer] = rows.windows[layer]
        token, tokens, logprobs, leads = ids[-1], [], [], []
        for step in range(max_tokens):
            logits = self._step(after, [token], count - 1 + step)
            if step == 0 and begin is not None:
                logits = begin
            best = logits.topk(2)
            token = int(best.indices[0])
            tokens.append(token)
            logprobs.append(float(logits.log_softmax(-1)[token]))
            leads.append(float(best.values[0] - best.values[1]))
        return Continuation(kept.tolist(), tokens, logprobs, leads)


def with_ties(
    choice: Choice, again: Callable[[torch.Tensor, list[int]], Continuation], few: int = 0
) -> Continuation:
    """What follows the choice, and what would follow where tokens that rank like its last stay.

    Args:
        few: how many positions stay in layers that keep less than others; 0: all keep as many.
    """
    def around(k: int) -> frozenset[int]:
        return frozenset(choice.order[max(choice.protected, k - CLOSE) : k + CLOSE].tolist())

    others = choice.order[:few].sort().values.tolist()
    return replace(
        again(choice.kept, others), close=around(choice.k), again=again,
        close_others=around(few) if few else frozenset(),
    )
