"""Requests as many clients would send them: all kinds of prompts and options, some of them bad."""

from __future__ import annotations

import json
import random
from typing import Any

from qm_vllm_eval.serving.ask import CHAT, COMPLETIONS, Ask


class Traffic:
    """An endless, seeded mixture.

    Args:
        model: served name. text: prose to cut prompts from. longest: words of a long prompt.
        vocabulary: token ids below this are used for prompts of plain ids.
    """

    def __init__(
        self, model: str, text: str, *, longest: int, vocabulary: int, seed: int
    ) -> None:
        self.model, self.words, self.longest = model, text.split(), longest
        self.vocabulary, self.random = vocabulary, random.Random(seed)
        self.pool = [self.good() for _ in range(12)]

    def next(self) -> Ask:
        """The next request: a known one, a new one, a repeated id or a bad one."""
        draw = self.random.random()
        if draw < 0.12:
            return self.bad()
        if draw < 0.45:
            known = self.random.choice(self.pool)
            salt = self.random.choice([None, None, "a", "b"])
            body = known.body | ({"cache_salt": salt} if salt else {})
            return Ask(known.path, body, known.greedy)
        ask = self.good()
        if draw < 0.52:
            return Ask(ask.path, ask.body, ask.greedy, headers={"X-Request-Id": "the-same"})
        return ask

    def good(self) -> Ask:
        """A request that has to be answered."""
        pick = self.random
        body: dict[str, Any] = {
            "model": self.model, "max_tokens": pick.randint(4, 40), "temperature": 0,
            "ignore_eos": True,
        }
        greedy = pick.random() > 0.1
        if not greedy:
            # No seed: vLLM's CPU engine dies of one whose prompt is prefilled in two steps.
            body |= {"temperature": 1.0, "n": pick.choice([1, 2])}
        if pick.random() < 0.4:
            body["stream"] = True
        options = self._options()
        if options and pick.random() < 0.3:
            body["kv_transfer_params"] = {"quickmerge": options}
        elif options:
            body["vllm_xargs"] = {
                f"qm_{name}": json.dumps(value) if name == "protect_ranges" else value
                for name, value in options.items()
            }
        kind = pick.random()
        if kind < 0.4:
            return Ask(CHAT, body | {"messages": self._talk()}, greedy)
        if kind < 0.8:
            return Ask(COMPLETIONS, body | {"prompt": self._prose()}, greedy)
        length = pick.randint(40, self.longest)
        ids = [pick.randrange(100, self.vocabulary) for _ in range(length)]
        return Ask(COMPLETIONS, body | {"prompt": ids}, greedy)

    def crowd(self, blocks: int, block_size: int = 32, count: int = 4) -> list[Ask]:
        """Plain requests that fit into a cache of so many blocks together, and outgrow it.

        Their prompts leave two blocks each; their answers need four.
        """
        tokens = (blocks // count - 2) * block_size
        body = {
            "model": self.model, "max_tokens": 4 * block_size, "temperature": 0,
            "ignore_eos": True, "kv_transfer_params": {"quickmerge": {"enabled": False}},
        }
        return [
            Ask(COMPLETIONS, body | {
                "prompt": [self.random.randrange(3, self.vocabulary) for _ in range(tokens)]
            })
            for _ in range(count)
        ]

    def bad(self) -> Ask:
        """A request that has to be refused with a 4xx."""
        pick = self.random
        far = [[10_000_000, 10_000_001]]
        many = [[i, i + 1] for i in range(100_000)]
        given: dict[str, Any] = pick.choice([
            {"ratio": 0}, {"ratio": 1e300}, {"ratio": -0.5}, {"ratio": "half"}, {"alpha": 2},
            {"max_kept": 3}, {"max_kept": -7}, {"max_error": -1}, {"saliency": "magic"},
            {"colour": "red"}, {"preset": "best"}, {"keep_roles": "bystander"},
            {"protect_ranges": far}, {"protect_ranges": [[-5, 4]]}, {"protect_ranges": [[9, 2]]},
            {"protect_ranges": many}, {"protect_ranges": 7}, {"max_live_jobs": 99},
            {"saliency": "x" * 10_000_000} if pick.random() < 0.2 else {"merge": "x" * 100_000},
        ])
        body: dict[str, Any] = {"model": self.model, "max_tokens": 4, "prompt": self._prose()}
        if pick.random() < 0.5:
            body["kv_transfer_params"] = {"quickmerge": given}
        else:
            body["vllm_xargs"] = {
                f"qm_{name}": json.dumps(value) if isinstance(value, list) else value
                for name, value in given.items()
            }
        return Ask(COMPLETIONS, body, bad=True)

    def _options(self) -> dict[str, Any]:
        pick = self.random
        ratio = round(pick.uniform(0.2, 1.0), 2)
        return pick.choice([
            {}, {"ratio": ratio}, {"ratio": ratio}, {"ratio": ratio, "query_visible": False},
            {"ratio": ratio, "delivery": "prefill"},
            {"ratio": ratio, "delivery": "native"}, {"ratio": ratio, "positions": "compact"},
            {"ratio": 1.0}, {"enabled": False}, {"max_kept": pick.randint(60, 400)},
            {"alpha": 0.45}, {"max_error": 0.4}, {"preset": "cache"}, {"keep_roles": "system"},
            {"ratio": ratio, "protect_ranges": [[8, 20]]}, {"merge": "mean", "grouping": "knn"},
        ])

    def _prose(self, most: int | None = None) -> str:
        length = self.random.randint(20, most or self.longest)
        start = self.random.randrange(max(1, len(self.words) - length))
        return " ".join(self.words[start : start + length])

    def _talk(self) -> list[dict[str, str]]:
        turns: list[dict[str, str]] = []
        if self.random.random() < 0.5:
            turns.append({"role": "system", "content": self._prose(40)})
        for _ in range(self.random.randint(0, 2)):
            turns.append({"role": "user", "content": self._prose(self.longest // 4)})
            turns.append({"role": "assistant", "content": self._prose(self.longest // 4)})
        return [*turns, {"role": "user", "content": self._prose(self.longest // 2)}]
