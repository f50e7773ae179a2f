"""Text: any transformers text encoder over windows of tokens.

A text longer than the model's positions is cut into windows, and each is encoded by itself: its
states see nothing of the other windows. With ``overlap``, a window also reads that many tokens
before and after its own; their states are dropped, so no token comes twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from qm_vllm.encoders.base import EncoderError, FrozenEncoder, Window
from qm_vllm.encoders.forward import freeze, own_rows, run_layers, sizes

MAX_WINDOW = 2048  # a default bound on memory for models that allow more


class TextEncoder(FrozenEncoder):
    """Hidden states of a text's tokens.

    Sources are a text, or the token ids (ints, or an int tensor [n]) of one without special
    tokens. The special tokens stand around every window while it is encoded, and come out
    once: the leading ones with the first window, the trailing ones with the last. So all windows
    together have the ids that the tokenizer gives for the whole text.

    Encoder-decoder models (T5, BART) give their encoder's states, decoder-only ones states in
    which a token sees only those before it.

    Memory: the states of one window, and 8 bytes for each token of the text.
    """

    def __init__(self, model: Any, tokenizer: Any, *, name: str = "text encoder") -> None:
        """Freezes the model where it is; an encoder-decoder's decoder is left out.

        Raises:
            EncoderError: the config gives no number of layers or no width.
        """
        if getattr(model.config, "is_encoder_decoder", False):
            model = model.get_encoder()
        self.name = name
        self.num_layers, self.hidden_size = sizes(model.config, name)
        self.device = next(model.parameters()).device
        self.model = freeze(model, self.device)
        if getattr(model.config, "use_cache", False):
            model.config.use_cache = False  # a KV cache that nothing would read
        self.tokenizer = tokenizer
        self.before, self.after = _special_tokens(tokenizer)
        self.max_window = position_limit(model)
        allowed = [MAX_WINDOW, self.max_window or MAX_WINDOW]
        named = getattr(tokenizer, "model_max_length", None)
        if isinstance(named, int) and named > len(self.before) + len(self.after):
            allowed.append(named)
        self.default_window = min(allowed)

    def stream(
        self, source: Any, *, window: int | None = None, overlap: int = 0
    ) -> Iterator[Window]:
        """Windows of a text in order, each token in exactly one.

        Args:
            source: str, or token ids without special tokens.
            window: tokens the model sees at once, special and overlapping ones included. None:
                what the tokenizer names, at most the model's positions and 2,048.
            overlap: tokens of context on either side whose states are dropped.

        Raises:
            EncoderError: no token, ids outside the vocabulary, or a window that does not fit.
        """
        self._check_window(window)
        return self._windows(source, window, overlap)

    def _windows(self, source: Any, window: int | None, overlap: int = 0) -> Iterator[Window]:
        size = self.default_window if window is None else window
        if self.max_window is not None and size > self.max_window:
            raise EncoderError(
                f"{self.name}: a window of {size} tokens does not fit the model's "
                f"{self.max_window} positions; give a window of at most {self.max_window}"
            )
        body = size - len(self.before) - len(self.after)
        if isinstance(overlap, bool) or not isinstance(overlap, int) or overlap < 0:
            raise EncoderError(f"{self.name}: overlap is {overlap!r}; give a whole number from 0")
        if body - 2 * overlap < 1:
            raise EncoderError(
                f"{self.name}: a window of {size} tokens with {size - body} special ones and an "
                f"overlap of {overlap} on either side leaves none of its own; give a window of "
                f"at least {size - body + 2 * overlap + 1} or less overlap"
            )
        return self._encoded(self._token_ids(source), body, overlap)

    def _encoded(self, ids: Tensor, body: int, overlap: int) -> Iterator[Window]:
        total, begin = ids.shape[0], 0
        while begin < total:
            low = max(0, begin - overlap)
            high = min(total, low + body)
            end = total if high == total else high - overlap
            yield self._window(ids, low, high, begin, end)
            begin = end

    def _window(self, ids: Tensor, low: int, high: int, begin: int, end: int) -> Window:
        """Encodes tokens low to high of the text, keeps begin to end and outer specials."""
        around = len(self.before)
        tokens = torch.cat(
            [torch.tensor(self.before), ids[low:high], torch.tensor(self.after)]
        ).long()
        first, last = begin == 0, end == ids.shape[0]
        keep = slice(
            0 if first else around + begin - low,
            tokens.shape[0] if last else around + end - low,
        )
        start = 0 if first else around + begin
        special = torch.zeros(tokens.shape[0], dtype=torch.bool)
        special[:around] = True
        special[tokens.shape[0] - len(self.after) :] = True
        states = run_layers(
            self.model,
            self.name,
            self.num_layers,
            self.hidden_size,
            input_ids=tokens[None].to(self.device),
        )
        return Window(
            layers=own_rows(states, self.name, keep, start),
            start=start,
            token_ids=tokens[keep].to(self.device),
            special=special[keep].to(self.device),
        )

    def _token_ids(self, source: Any) -> Tensor:
        """int64 [n], not empty, inside the vocabulary."""
        if isinstance(source, str):
            # verbose=False: a text longer than the model is what the windows are for
            encoded = self.tokenizer(source, add_special_tokens=False, verbose=False)
            ids = torch.tensor(encoded["input_ids"], dtype=torch.int64)
        else:
            ids = self._given_ids(source)
        if ids.shape[0] == 0:
            raise EncoderError(f"{self.name}: the text has no token; give one that is not empty")
        rows = self.model.get_input_embeddings().num_embeddings
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= rows:
            raise EncoderError(
                f"{self.name}: token ids from {low} to {high} (shape {tuple(ids.shape)}) do not "
                f"fit a vocabulary of {rows}; use the tokenizer that belongs to the model"
            )
        return ids

    def _given_ids(self, source: Any) -> Tensor:
        if isinstance(source, Tensor):
            ids = source
        elif isinstance(source, list | tuple) and all(type(item) is int for item in source):
            ids = torch.tensor(list(source), dtype=torch.int64)
        else:
            raise EncoderError(
                f"{self.name}: a source of type {type(source).__name__} is no text; give one str "
                "or the token ids of one text"
            )
        if ids.dim() != 1 or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise EncoderError(
                f"{self.name}: token ids of shape {tuple(ids.shape)} and type {ids.dtype}; give "
                "whole numbers of shape [n], one text at a time"
            )
        return ids.detach().to("cpu", torch.int64)


def _special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Ids that the tokenizer puts before and after a text."""
    plain = tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"]
    full = tokenizer("a", verbose=False)["input_ids"]
    for at in range(len(full) - len(plain) + 1):
        if plain and full[at : at + len(plain)] == plain:
            return full[:at], full[at + len(plain) :]
    return [], []


def position_limit(model: Any) -> int | None:
    """The most tokens that fit a model's positions, special ones included; None: no limit.

    RoBERTa and its relatives count positions from the padding id on, so their table has rows
    that no token ever uses.
    """
    limits = []
    named = getattr(model.config, "max_position_embeddings", None)
    relative = getattr(model.config, "relative_attention_num_buckets", None)
    if isinstance(named, int) and named > 0 and relative is None:
        limits.append(named)
    for part, module in model.named_modules():
        if "position" in part and isinstance(module, torch.nn.Embedding):
            unused = 0 if module.padding_idx is None else module.padding_idx + 1
            if unused:
                limits.append(module.num_embeddings - unused)
    return min(limits, default=None)
