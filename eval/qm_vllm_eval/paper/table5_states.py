"""MSCOCO and Something-Something v2 of Table 5: QuickMerge++ under a decoder that never saw it.

The decoder is trained with "Fixed Patches", that is on all N states of the frozen encoder, to say
a picture's caption or a video's class. Then it is measured twice: with all states, and with those
that QuickMerge++ merges them into. Nothing is trained for the merge; only the threshold alpha of
its entropy budget is chosen on the training sequences.

A picture has one caption to train on, its captions in turn from picture to picture; captions are
said greedily and scored against all of a picture's captions. A video is 8 frames spread evenly
over it, each pooled to a few patch states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qm_vllm_eval.baselines import METHODS
from qm_vllm_eval.bleu import bleu
from qm_vllm_eval.datasets.coco_captions import CocoRow
from qm_vllm_eval.datasets.ego4d_real import frames
from qm_vllm_eval.datasets.rows import DataSetError
from qm_vllm_eval.datasets.something import SomethingRow
from qm_vllm_eval.paper import full, image, video
from qm_vllm_eval.paper.decoder import Trained, sampled, target_nats, train
from qm_vllm_eval.paper.measure import spec
from qm_vllm_eval.paper.prepared import IGNORED, Prepared, Split, scores
from qm_vllm_eval.paper.scale import Scale

LONGEST = 30
"""Most ids of a caption, the end included; what is longer is cut."""
FRAMES = 8
FRAMES_PER_SECOND = 12.0
"""Rate at which a video is read before 8 frames are chosen; that of the set's own videos."""
BASELINE, OURS = "Fixed Patches", "QuickMerge++"


class Captions:
    """Output ids of captions: pieces that training captions have, one for others, one for the end.

    Args:
        tokenizer: of the text encoder. captions: of the training split.
    """

    def __init__(self, tokenizer: Any, captions: Iterable[str]) -> None:
        self._tokenizer = tokenizer
        self.pieces = sorted({piece for text in captions for piece in self._pieces(text)})
        self._ids = {piece: number for number, piece in enumerate(self.pieces)}
        self.unseen, self.end = len(self.pieces), len(self.pieces) + 1

    def __len__(self) -> int:
        return len(self.pieces) + 2

    def targets(self, captions: Sequence[str]) -> Tensor:
        """int64 [S, LONGEST]: ids, then the end, then -100."""
        found = torch.full((len(captions), LONGEST), IGNORED)
        for row, text in zip(found, captions, strict=True):
            ids = [self._ids.get(piece, self.unseen) for piece in self._pieces(text)]
            ids = [*ids[: LONGEST - 1], self.end]
            row[: len(ids)] = torch.tensor(ids)
        return found

    def text(self, ids: Iterable[int]) -> str:
        """The words of ids up to the end; the id of unseen pieces says nothing."""
        said = []
        for number in ids:
            if number == self.end:
                break
            if number < self.unseen:
                said.append(self.pieces[number])
        return str(self._tokenizer.decode(said, skip_special_tokens=True)).strip()

    def _pieces(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])


def captions(
    train_rows: Iterable[CocoRow], test_rows: Iterable[CocoRow], counts: tuple[int, int],
    encoder: Any, tokenizer: Any, scale: Scale, device: torch.device,
) -> dict[str, Any]:
    """BLEU-4 of captions with all states and, by the same decoder, with merged ones.

    Args:
        counts: most pictures to train on and to measure on, spread evenly over the rows.
        encoder: a :class:`qm_vllm.encoders.vision.ImageEncoder`. tokenizer: of a text encoder.

    Returns:
        as :func:`pair`; BLEU-4 in per cent, lower case.

    Raises:
        DataSetError: a split has no picture that can be used.
    """
    sides = [_chosen(*given) for given in zip((train_rows, test_rows), counts, strict=True)]
    told = [[row.references[at % len(row.references)] for at, row in enumerate(side)]
            for side in sides]
    words = Captions(tokenizer, told[0])
    shown = [(full.Images([row.image for row in side], scale.image_side), torch.zeros(len(side)))
             for side in sides]
    pictures = image.prepare(shown[0], shown[1], encoder, scale.image_side, "MSCOCO captions")
    prepared = replace(
        pictures, vocabulary=len(words),
        train=replace(pictures.train, targets=words.targets(told[0])),
        test=replace(pictures.test, targets=words.targets(told[1])),
    )
    references = [row.references for row in sides[1]]
    return pair(prepared, scale, device, lambda trained: caption_bleu(
        trained, prepared.test, words, references, 4 * scale.batch, device
    ))


def caption_bleu(
    trained: Trained, split: Split, words: Captions, references: Sequence[Sequence[str]],
    batch: int, device: torch.device,
) -> float:
    """BLEU-4 in per cent of captions that the decoder says greedily, [S] lists of references."""
    ids = sampled(trained, split, LONGEST, batch, 0, device, greedy=True, end=words.end)
    said = [words.text(row) for row in ids.tolist()]
    return 100 * float(bleu(said, references, lowercase=True, resamples=1)["mean"])


def actions(
    train_rows: Iterable[SomethingRow], test_rows: Iterable[SomethingRow], classes: int,
    counts: tuple[int, int], encoder: Any, scale: Scale, device: torch.device,
) -> dict[str, Any]:
    """Accuracy of videos' classes with all states and, by the same decoder, with merged ones.

    Args:
        classes: how many there are.
        counts: most videos to train on and to measure on, spread evenly over the rows.
        encoder: a :class:`qm_vllm.encoders.vision.ImageEncoder`.

    Returns:
        as :func:`pair`; accuracy in per cent.

    Raises:
        DataSetError: OpenCV is missing, or a split has no video that can be decoded.
    """
    splits = [_clips(_chosen(*given), encoder, scale)
              for given in zip((train_rows, test_rows), counts, strict=True)]
    prepared = Prepared(
        "video", splits[0], splits[1], vocabulary=classes, data="Something-Something v2",
        encoder=encoder.name, codes=torch.empty(0),
    )

    def accuracy(trained: Trained) -> float:
        _, right, _ = target_nats(trained, prepared.test, 4 * scale.batch, device)
        return 100 * float(right[:, 0].double().mean())

    return pair(prepared, scale, device, accuracy)


def pair(
    prepared: Prepared, scale: Scale, device: torch.device, measured: Callable[[Trained], float]
) -> dict[str, Any]:
    """Train with all states, measure with all and with merged ones.

    Args:
        measured: the metric on the test split.

    Returns:
        baseline, quickmerge; compression, compression_std: mean and deviation over the test
        sequences of N / K; rows: how many there are.
    """
    known, seed = spec(prepared), scale.seeds[0]
    plain = train(METHODS[BASELINE](known), prepared, scale, seed, device)
    merged = replace(plain, method=METHODS[OURS](known).to(device).eval())
    with torch.inference_mode():
        kept = torch.cat([
            merged.method(prepared.test.source(rows, device)).lengths.cpu()
            for rows in torch.arange(len(prepared.test)).split(4 * scale.batch)
        ])
    factors = prepared.num_tokens / kept.double()
    return {
        "baseline": measured(plain), "quickmerge": measured(merged),
        "compression": float(factors.mean()), "compression_std": float(factors.std(correction=0)),
        "rows": len(prepared.test),
    }


def _chosen(rows: Iterable[Any], count: int) -> list[Any]:
    """Usable rows, spread evenly over all of them."""
    held = list(rows)
    usable = [row for row in held if row.usable]
    if not usable:
        raise DataSetError(held[0].reason if held else "the split has no rows")
    return full.spread(usable, count)


def _clips(rows: Sequence[SomethingRow], encoder: Any, scale: Scale) -> Split:
    """One sequence for each video that can be decoded: FRAMES * pooled^2 states."""
    found: list[tuple[Tensor, ...]] = []
    labels, problem = [], ""
    for row in rows:
        try:
            shown = evenly(row.video)
        except DataSetError as error:
            problem = problem or str(error)
            continue
        held = video.encode(shown, encoder, scale.video_side, scale.pooled)
        layers = held["layers"].flatten(1, 2).float()
        relative, absolute = scores([layer[None] for layer in layers[:-1]])
        found.append((layers[-1].half(), relative[0], absolute[0], held["raw"].flatten()))
        labels.append(row.label)
    if not found:
        raise DataSetError(problem)
    states, relative, absolute, raw = (torch.stack(part) for part in zip(*found, strict=True))
    count = len(labels)
    return Split(
        states, relative, absolute, raw, torch.full((count,), raw.shape[1]),
        torch.tensor(labels)[:, None], torch.ones(count), torch.empty(count, 0),
        torch.zeros(count),
    )


def evenly(file: Path, count: int = FRAMES) -> list[np.ndarray]:
    """``count`` RGB frames [H, W, 3] spread evenly over a video; a short one gives some twice.

    Raises:
        DataSetError: OpenCV is missing, or cannot decode the file.
    """
    shown = list(frames(file, FRAMES_PER_SECOND))
    return [shown[i * len(shown) // count] for i in range(count)]
