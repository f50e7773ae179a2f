"""Requests as many clients would send them: all kinds of prompts and options, some of them bad."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

from qm_vllm_eval.serving import agent_traffic
from qm_vllm_eval.serving.ask import CHAT, COMPLETIONS, MESSAGES, RESPONSES, Ask


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
            return replace(known, body=body)
        ask = self.good()
        return replace(ask, headers={"X-Request-Id": "the-same"}) if draw < 0.52 else ask

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
        (make,) = pick.choices(
            (self._text, self._ids, self._chat, self._tools, self._form, self._other),
            (0.24, 0.12, 0.22, 0.18, 0.14, 0.1),
        )
        return replace(make(body), greedy=greedy)

    def _text(self, body: dict[str, Any]) -> Ask:
        return Ask(COMPLETIONS, body | {"prompt": self._prose()}, kind="text")

    def _ids(self, body: dict[str, Any]) -> Ask:
        length = self.random.randint(40, self.longest)
        ids = [self.random.randrange(100, self.vocabulary) for _ in range(length)]
        return Ask(COMPLETIONS, body | {"prompt": ids}, kind="ids")

    def _chat(self, body: dict[str, Any]) -> Ask:
        return Ask(CHAT, body | {"messages": self._talk()}, kind="chat")

    def _tools(self, body: dict[str, Any]) -> Ask:
        kind, more = agent_traffic.tools(self.random, self._prose)
        return Ask(CHAT, without(body, "ignore_eos") | more, kind=kind)

    def _form(self, body: dict[str, Any]) -> Ask:
        ask = self.random.choice((self._text, self._chat))(body)
        more = agent_traffic.form(self.random)
        return replace(
            ask, body=without(ask.body, "ignore_eos") | more, kind=f"form of a {ask.kind}"
        )

    def _other(self, body: dict[str, Any]) -> Ask:
        """At an endpoint that knows neither ``n`` nor, one of them, OpenAI's forms."""
        body = without(body, "n", "ignore_eos")
        if self.random.random() < 0.4:
            return Ask(MESSAGES, body | {"messages": self._talk()[-1:]}, kind="messages")
        more = agent_traffic.text_form(self.random) if self.random.random() < 0.5 else {}
        more |= {"input": self._prose(), "max_output_tokens": body["max_tokens"]}
        return Ask(RESPONSES, without(body, "max_tokens") | more, kind="responses")

    def crowd(self, blocks: int, block_size: int = 32, count: int = 4) -> list[Ask]:
        """Uncompressed requests that fit into a cache of so many blocks, and outgrow it.

        Their prompts leave two blocks each; their answers need four. Every other has a form, so
        that some request is preempted in the middle of one.
        """
        tokens, answer = (blocks // count - 2) * block_size, 4 * block_size
        body = {
            "model": self.model, "max_tokens": answer, "temperature": 0,
            "kv_transfer_params": {"quickmerge": {"enabled": False}},
        }
        ends: tuple[dict[str, Any], ...] = (
            {"ignore_eos": True},
            {"structured_outputs": {"regex": "[a-z]+"}, "min_tokens": answer},
        )
        return [
            Ask(COMPLETIONS, body | ends[i % 2] | {
                "prompt": [self.random.randrange(3, self.vocabulary) for _ in range(tokens)]
            }, kind="crowd")
            for i in range(count)
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
            {"hint": 7}, {"hint": "x" * 1025}, {"hint": "Why?", "saliency": "entropy"},
            {"saliency": "x" * 10_000_000} if pick.random() < 0.2 else {"merge": "x" * 100_000},
        ])
        body: dict[str, Any] = {"model": self.model, "max_tokens": 4}
        make = pick.choice((self._text, self._text, self._tools, self._form))
        path, body = (ask := make(body)).path, ask.body
        if pick.random() < 0.5:
            body["kv_transfer_params"] = {"quickmerge": given}
        else:
            body["vllm_xargs"] = {
                f"qm_{name}": json.dumps(value) if isinstance(value, list) else value
                for name, value in given.items()
            }
        return Ask(path, body, bad=True, kind="bad")

    def _options(self) -> dict[str, Any]:
        pick = self.random
        ratio = round(pick.uniform(0.2, 1.0), 2)
        return pick.choice([
            {}, {"ratio": ratio}, {"ratio": ratio}, {"ratio": ratio, "query_visible": False},
            {"ratio": ratio, "delivery": "prefill"},
            {"ratio": ratio, "delivery": "native"}, {"ratio": ratio, "positions": "compact"},
            {"ratio": 1.0}, {"enabled": False}, {"max_kept": pick.randint(60, 400)},
            {"alpha": 0.45}, {"max_error": 0.4}, {"preset": "cache"}, {"keep_roles": "system"},
            {"keep_roles": "tool,last_user"}, {"ratio": ratio, "hint": self._prose(60)},
            {"ratio": ratio, "hint": self._prose(60), "query_visible": False},
            {"ratio": ratio, "hint": self._prose(60), "delivery": "native"},
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


def without(body: dict[str, Any], *names: str) -> dict[str, Any]:
    """The same body with these fields left out."""
    return {name: value for name, value in body.items() if name not in names}
