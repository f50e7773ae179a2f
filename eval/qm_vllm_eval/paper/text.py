"""The text task: given a passage, how well does a decoder predict the words that follow?

A window is N WordPiece tokens, read by the frozen encoder, and M more that nobody has read. The
decoder gets what a method makes of the N states, then predicts the M tokens one by one, each from
the true ones before it. So every method predicts the same tokens, and a perplexity per source
token compares across methods. (The paper does not say what its PPL counts. A decoder that
predicts merged states of a bidirectional encoder would see the future: each state knows the whole
window.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qm_vllm_eval.paper.prepared import IGNORED, Prepared, Split, padded_bytes, scores

TARGETS = 32
"""M, tokens that are predicted."""


def prepare(
    train: Sequence[str], test: Sequence[str], counts: tuple[int, int], encoder: Any,
    num_tokens: int, data: str,
) -> Prepared:
    """Windows spread evenly over the texts, none overlapping another.

    Args:
        train, test: whole texts.
        counts: most windows of each.
        encoder: a :class:`qm_vllm.encoders.text.TextEncoder`.
        num_tokens: N.
        data: name of the texts.

    Raises:
        ValueError: a side has no whole window.
    """
    cut = [_windows(texts, encoder.tokenizer, num_tokens, count)
           for texts, count in zip((train, test), counts, strict=True)]
    for name, windows in zip(("train", "test"), cut, strict=True):
        if not windows:
            raise ValueError(f"the {name} texts hold no {num_tokens + TARGETS} tokens")
    pieces = torch.tensor([ids for ids, _ in cut[0]]).unique()
    size = len(encoder.tokenizer)
    table = torch.full((size,), len(pieces))
    table[pieces] = torch.arange(len(pieces))
    unseen = math.log(max(1, size - len(pieces)))
    first, second = (
        _split(windows, encoder, num_tokens, table, len(pieces), unseen) for windows in cut
    )
    return Prepared(
        "text", first, second, vocabulary=len(pieces) + 1, data=data, encoder=encoder.name,
        codes=torch.empty(0),
    )


def _windows(
    texts: Sequence[str], tokenizer: Any, num_tokens: int, count: int
) -> list[tuple[list[int], bytes]]:
    """Ids of N + M tokens, and the UTF-8 bytes of the first N."""
    found = []
    for text in texts:
        read = tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        ids, places = read["input_ids"], read["offset_mapping"]
        for first in range(0, len(ids) - num_tokens - TARGETS + 1, num_tokens + TARGETS):
            stop = first + num_tokens
            part = text[places[first][0] : places[stop - 1][1]]
            found.append((ids[first : stop + TARGETS], part.encode()))
    count = min(count, len(found))
    return [found[i * len(found) // count] for i in range(count)]


@torch.inference_mode()
def _split(
    windows: list[tuple[list[int], bytes]], encoder: Any, num_tokens: int, table: Tensor,
    unknown: int, unseen: float,
) -> Split:
    ids = torch.tensor([row for row, _ in windows])
    states: list[Tensor] = []
    relative: list[Tensor] = []
    absolute: list[Tensor] = []
    first, last = encoder.tokenizer.cls_token_id, encoder.tokenizer.sep_token_id
    for part in ids[:, :num_tokens].split(64):
        around = torch.nn.functional.pad(part, (1, 0), value=first)
        around = torch.nn.functional.pad(around, (0, 1), value=last).to(encoder.device)
        layers = encoder.model(
            input_ids=around, attention_mask=torch.ones_like(around), output_hidden_states=True
        ).hidden_states
        layers = [layer[:, 1:-1] for layer in layers]
        states.append(layers[-1].half().cpu())
        for held, value in zip((relative, absolute), scores(layers[:-1]), strict=True):
            held.append(value.cpu())
    raw, lengths = padded_bytes([text for _, text in windows])
    targets = table[ids[:, num_tokens:]]
    return Split(
        torch.cat(states), torch.cat(relative), torch.cat(absolute), raw, lengths,
        targets.masked_fill(targets < 0, IGNORED), torch.full((len(ids),), float(TARGETS)),
        torch.empty(len(ids), 0), unseen * (targets == unknown).sum(1).float(),
    )


def folder_texts(folder: Path, names: Sequence[str]) -> list[str]:
    """Texts by file name.

    Raises:
        FileNotFoundError: one is missing; the sentence names the script that fetches it.
    """
    texts = []
    for name in names:
        file = folder / f"{name}.txt"
        if not file.is_file():
            raise FileNotFoundError(f"there is no {file}; run scripts/fetch_texts.sh")
        texts.append(file.read_text(encoding="utf-8"))
    return texts
