"""Worker of the llmlingua environment: shortens the text of one prompt to a number of tokens.

Started by :func:`qm_vllm_eval.peers.client.llmlingua_client`. A request::

    {"method": "llmlingua" | "longllmlingua", "context": str, "question": str,
     "target_tokens": int, "tokens_now": int}

``target_tokens`` and ``tokens_now`` count the model's own tokens, without special ones;
``question`` is used by longllmlingua alone. The reply::

    {"text": str, "tokens": int, "seconds": float, "calls": int, "cut": int, "settings": str,
     "versions": str, "error": null}

``tokens``: length of the text, never above ``target_tokens``. ``calls``: how often the package
was called, since it only comes near a target; ``seconds`` covers all calls. ``cut``: tokens cut
off the end because no call came under the target. A request that failed is answered with
``{"error": "reason"}``.
"""

from __future__ import annotations

import argparse
import re
import time
from typing import Any

from qm_vllm_eval.peers.model_folder import readable_folder
from qm_vllm_eval.peers.serve import protected_output, serve

MAX_CALLS = 4
CLOSE_ENOUGH = 0.02  # of the target, below it
PASSAGE_WORDS = 100  # the passages of Natural Questions, on which LongLLMLingua was built

# What the package's README of 0.2.2 gives for each method. LLMLingua's are the defaults of
# compress_prompt. Not taken over: reorder_context="sort", which would change what comes last.
# iterative_size is 200 by default, and the last segment, up to that long, is left uncompressed
# (github.com/microsoft/LLMLingua/issues/73 and 196): small targets need smaller segments.
ITERATIVE_SIZE, SMALLEST_SIZE = 200, 20
_SHARED: dict[str, Any] = {
    "context_budget": "+100",
    "use_sentence_level_filter": False,
    "use_context_level_filter": True,
    "use_token_level_filter": True,
    "reorder_context": "original",
    "concate_question": False,
}
METHODS: dict[str, dict[str, Any]] = {
    "llmlingua": {**_SHARED, "rank_method": "llmlingua"},
    "longllmlingua": {
        **_SHARED,
        "rank_method": "longllmlingua",
        "condition_in_question": "after_condition",
        "condition_compare": True,
        "dynamic_context_compression_ratio": 0.3,
    },
}


class LlmlinguaWorker:
    """Holds a compressor and answers requests.

    Args:
        compressor: a ``llmlingua.PromptCompressor``.
    """

    def __init__(self, compressor: Any) -> None:
        from importlib.metadata import version

        self.compressor, self.tokenizer = compressor, compressor.tokenizer
        self._ranked: dict[Any, Any] = {}
        self._rank = compressor.get_condition_ppl
        compressor.get_condition_ppl = self._rank_once
        names = ("llmlingua", "transformers", "torch")
        self.versions = ", ".join(f"{name} {version(name)}" for name in names)

    def handle(self, request: dict[str, Any]) -> dict[str, Any]:
        """One reply, see the module's docstring.

        Raises:
            KeyError, ValueError: the request lacks a part, or a part is not usable.
        """
        method, context, target = request["method"], request["context"], request["target_tokens"]
        if method not in METHODS:
            raise ValueError(f"unknown method {method!r}; known: {', '.join(METHODS)}")
        if target < 1:
            raise ValueError("target_tokens must be at least 1")
        question = request["question"] if method == "longllmlingua" else ""
        self._ranked.clear()
        started = time.perf_counter()
        if int(request["tokens_now"]) <= target:
            text, calls, cut = context, 0, 0
        else:
            text, calls, cut = self._fit(method, passages(context), question, int(target))
        options = ", ".join(f"{key}={value}" for key, value in _settings(method, target).items())
        return {
            "text": text,
            "tokens": len(self._ids(text)),
            "seconds": time.perf_counter() - started,
            "calls": calls,
            "cut": cut,
            "settings": f"{options}, passages of {PASSAGE_WORDS} words",
            "versions": self.versions,
            "error": None,
        }

    def _rank_once(self, *args: Any, **kwargs: Any) -> Any:
        """The compressor's perplexity of a passage, computed once in a request of many calls."""
        key = (args, tuple(sorted(kwargs.items())))
        if key not in self._ranked:
            self._ranked[key] = self._rank(*args, **kwargs)
        return self._ranked[key]

    def _fit(
        self, method: str, context: list[str], question: str, target: int
    ) -> tuple[str, int, int]:
        """The longest of a few results that is not above the target; calls; tokens cut off."""
        under: tuple[float, int, str] | None = None  # what was asked, what came, its text
        over: tuple[float, int, str] | None = None
        asked, calls = float(target), 0
        while calls < MAX_CALLS:
            result = self.compressor.compress_prompt(
                context, question=question, target_token=asked, **_settings(method, target)
            )
            text = result["compressed_prompt"].strip()
            came, calls = len(self._ids(text)), calls + 1
            if came <= target and (under is None or came >= under[1]):
                under = (asked, came, text)
            elif came > target and (over is None or came <= over[1]):
                over = (asked, came, text)
            if under is not None and target - under[1] <= max(1.0, CLOSE_ENOUGH * target):
                break
            asked = _next_target(under, over, target)
        if under is not None:
            return under[2], calls, 0
        assert over is not None
        return *self._cut(over[2], target, calls), over[1] - target

    def _cut(self, text: str, target: int, calls: int) -> tuple[str, int]:
        ids = self._ids(text)[:target]
        short = str(self.tokenizer.decode(ids))
        while len(self._ids(short)) > target:  # a cut character may become several tokens
            ids = ids[:-1]
            short = str(self.tokenizer.decode(ids))
        return short, calls

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)


def _settings(method: str, target: int) -> dict[str, Any]:
    size = min(ITERATIVE_SIZE, max(SMALLEST_SIZE, target // 4))
    return {**METHODS[method], "iterative_size": size}


def _next_target(
    under: tuple[float, int, str] | None, over: tuple[float, int, str] | None, target: int
) -> float:
    """What to ask for next: between two results in proportion, else scaled from the one."""
    aim = target - 0.5 * CLOSE_ENOUGH * target
    if under is not None and over is not None:
        share = (aim - under[1]) / max(1, over[1] - under[1])
        return under[0] + min(0.9, max(0.1, share)) * (over[0] - under[0])
    asked, came, _ = under or over or (aim, target, "")
    return max(1.0, asked * aim / max(1, came))


def passages(text: str) -> list[str]:
    """Cut a text at ends of sentences and lines into passages of about 100 words.

    LLMLingua ranks and drops whole parts before it drops tokens, so it wants the prompt in parts.

    Returns:
        at least one passage, none of them empty; ``[text]`` where there is nothing but blanks.
    """
    found: list[str] = []
    current, words = "", 0
    for piece in re.findall(r".+?(?:[.!?](?=\s)|\n|\Z)\s*", text, re.DOTALL):
        current, words = current + piece, words + len(piece.split())
        if words >= PASSAGE_WORDS:
            found.append(current.strip())
            current, words = "", 0
    if current.strip():
        found.append(current.strip())
    return [passage for passage in found if passage] or [text]


class _Words:
    """Stands in for an OpenAI tokenizer, with which the package only counts for its report."""

    def encode(self, text: str) -> list[str]:
        return text.split()


def load_compressor(folder: str) -> Any:
    """A PromptCompressor on the CPU, without the table of tokens that it would download.

    Args:
        folder: of a transformers causal language model.
    """
    import tiktoken  # type: ignore[import-not-found,unused-ignore]
    from llmlingua import PromptCompressor  # type: ignore[import-not-found,unused-ignore]

    original = tiktoken.encoding_for_model
    tiktoken.encoding_for_model = lambda _name: _Words()
    try:
        with readable_folder(folder) as readable:
            return PromptCompressor(str(readable), device_map="cpu")
    finally:
        tiktoken.encoding_for_model = original


def main() -> None:
    """Command line of the worker."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder of a transformers model")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    replies = protected_output()
    import torch

    torch.set_num_threads(options.threads)
    serve(LlmlinguaWorker(load_compressor(options.model)).handle, replies)


if __name__ == "__main__":
    main()
