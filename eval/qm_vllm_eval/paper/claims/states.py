"""Real states for the checks: text and images through frozen encoders, small windows."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from qm_vllm.assets.cache import cache_folder
from qm_vllm.assets.embedded import ensure_model
from qm_vllm.encoders import FrozenEncoder, load_encoder
from qm_vllm.errors import UserError
from qm_vllm_eval.datasets.ego4d_real import frames
from qm_vllm_eval.haystacks import NOVELS, text_folder

VIDEOS = ("carphone_pristine.mp4", "bikes.mp4", "bigbuckbunny.mp4", "vtest.avi")
_CHARACTERS = 8  # of a text for each token wanted, more than any tokenizer takes


@dataclass(frozen=True, eq=False)
class RealStates:
    """Windows of one frozen model.

    Attributes:
        name: of the model.
        windows: of each window, L + 1 states [N, D] float32: what enters layer l, the exit last.
        layer: the model's own layer l, from states [B, n, D] and positions [B, n].
        upper: the layers from l to the end, from [N, D] to [N, D].
        surprisals: -log p [N - 1] of the tokens after the first, nats; language models only.
    """

    name: str
    windows: list[tuple[Tensor, ...]]
    layer: Callable[[int], Callable[[Tensor, Tensor], Tensor]]
    upper: Callable[[int], Callable[[Tensor], Tensor]]
    surprisals: list[Tensor] = field(default_factory=list)

    @property
    def depth(self) -> int:
        """L, the number of layers."""
        return len(self.windows[0]) - 1

    @property
    def middle(self) -> int:
        """The layer in the middle: L / 2, rounded down."""
        return self.depth // 2


def passages(count: int, tokens: int) -> list[str]:
    """Passages of the tuning novels, long enough for some tokens, spread over the books.

    Raises:
        UserError: a text is not on this machine.
    """
    names = NOVELS["tune"]
    found = []
    for number in range(count):
        file = text_folder() / f"{names[number % len(names)]}.txt"
        if not file.is_file():
            raise UserError(f"{file.name} is not there; run scripts/fetch_texts.sh")
        text = file.read_text(encoding="utf-8")
        rounds = -(-count // len(names))
        start = len(text) * (1 + number // len(names)) // (rounds + 1)
        start = text.index(" ", start) + 1
        found.append(text[start : start + _CHARACTERS * tokens])
    return found


def random_words(count: int, tokens: int, seed: int) -> list[str]:
    """Words of the novels in random order."""
    words = " ".join(passages(16, 4 * tokens)).split()
    draw = random.Random(seed)
    return [" ".join(draw.choices(words, k=2 * tokens)) for _ in range(count)]


def repeated_sentence(count: int, tokens: int) -> list[str]:
    """One sentence of the novels, over and over."""
    sentences = [text.split(". ")[1] + ". " for text in passages(count, 4 * tokens)]
    return [sentence * (1 + _CHARACTERS * tokens // len(sentence)) for sentence in sentences]


def minilm(encoder: FrozenEncoder, texts: list[str], tokens: int) -> RealStates:
    """Windows of MiniLM; the first token of each is [CLS]."""
    windows = [_first(encoder, text, tokens) for text in texts]
    return RealStates(encoder.name, windows, *_stack(encoder.model.encoder.layer))  # type: ignore[attr-defined]


def dinov2(count: int) -> RealStates:
    """Frames of the four test videos, 257 tokens each, the first is the class token.

    Raises:
        UserError: a video is not on this machine.
    """
    encoder: Any = load_encoder("dinov2", dtype=torch.float32)
    windows = []
    for number, name in enumerate(VIDEOS):
        file = cache_folder() / "videos" / name
        if not file.is_file():
            raise UserError(f"the video {name} is not in the cache folder; fetch it first")
        wanted = len(range(number, count, len(VIDEOS)))
        for frame in islice(frames(file, 1.0), 1, 1 + wanted):
            windows.append(encoder.encode(frame).layers)
    return RealStates(encoder.name, windows, *_stack(encoder.model.encoder.layer))


def smollm2(texts: list[str], tokens: int) -> RealStates:
    """Windows of SmolLM2-135M-Instruct in float32, with each token's surprisal."""
    encoder: Any = load_encoder(str(ensure_model()), dtype=torch.float32)
    model = encoder.model
    table = model.embed_tokens.weight.detach()
    windows, surprisals = [], []
    for text in texts:
        window = next(encoder.stream(text[: _CHARACTERS * tokens], window=tokens))
        logs = (window.states[:-1] @ table.T).log_softmax(1)
        surprisals.append(-logs.gather(1, window.token_ids[1:, None])[:, 0])
        windows.append(window.layers)
    return RealStates(encoder.name, windows, *decoder_parts(model), surprisals)


def decoder_parts(model: Any) -> tuple[Any, Any]:
    """``layer`` and ``upper`` (see :class:`RealStates`) of a causal decoder with rotary keys."""

    def layer(index: int) -> Callable[[Tensor, Tensor], Tensor]:
        part = _part(model, slice(index, index + 1), exit_norm=False)

        def run(states: Tensor, places: Tensor) -> Tensor:
            # Without a mask a gap in the positions would be read as the start of another text.
            seen = torch.ones_like(places)
            return part(
                inputs_embeds=states, position_ids=places, attention_mask=seen, use_cache=False
            ).last_hidden_state

        return run

    def upper(index: int) -> Callable[[Tensor], Tensor]:
        part = _part(model, slice(index, None), exit_norm=True)
        return lambda states: part(
            inputs_embeds=states[None], use_cache=False
        ).last_hidden_state[0]

    return layer, upper


def _first(encoder: FrozenEncoder, text: str, tokens: int) -> tuple[Tensor, ...]:
    return next(encoder.stream(text, window=tokens)).layers


def _stack(layers: nn.ModuleList) -> tuple[Any, Any]:
    """``layer`` and ``upper`` of a bidirectional encoder without positions in its layers."""

    def layer(index: int) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda states, _: layers[index](states)

    def upper(index: int) -> Callable[[Tensor], Tensor]:
        def run(states: Tensor) -> Tensor:
            rows = states[None]
            for part in layers[index:]:
                rows = part(rows)
            return rows[0]

        return run

    return layer, upper


def _part(model: Any, layers: slice, *, exit_norm: bool) -> Any:
    """The decoder with some of its layers only; weights are shared, the model is untouched."""
    part = copy.copy(model)
    part._modules = dict(model._modules)
    part.config = copy.copy(model.config)
    part.layers = nn.ModuleList(model.layers[layers])
    part.config.num_hidden_layers = len(part.layers)
    if not exit_norm:
        part.norm = nn.Identity()
    return part
