"""How large a run of the tables is."""

from __future__ import annotations

from dataclasses import dataclass, replace

CONTEXT = 128
"""N of the text and the video task, as in the paper's Table 3; the image task has 64 patches."""


@dataclass(frozen=True)
class Scale:
    """Sizes of one run; everything that decides a figure and is not a method's own.

    Attributes:
        layers, width, heads: of the decoder.
        steps, batch: the training budget, the same for every method.
        learning_rate: highest rate of the schedule.
        seeds: of the initial weights, of the order of the data and of the noise.
        text, images, video: most sequences to train on and to measure on.
        image_side, video_side: pixels of a side that the encoder sees.
        pooled: tokens of a video frame's side after pooling its patches.
    """

    name: str
    layers: int
    width: int
    heads: int
    steps: int
    batch: int
    learning_rate: float
    seeds: tuple[int, ...]
    text: tuple[int, int]
    images: tuple[int, int]
    video: tuple[int, int]
    image_side: int = 112
    video_side: int = 112
    pooled: int = 4


SMOKE = Scale(
    "smoke", layers=1, width=64, heads=2, steps=4, batch=8, learning_rate=1e-3, seeds=(0, 1),
    text=(32, 16), images=(40, 20), video=(32, 16),
)
SMALL = Scale(
    "small", layers=2, width=192, heads=4, steps=100, batch=16, learning_rate=1e-3,
    seeds=(0, 1, 2), text=(2400, 512), images=(2400, 600), video=(1200, 512),
)
PAPER_DECODER = replace(
    SMALL, name="medium", layers=6, width=512, heads=8, steps=400, batch=64, learning_rate=5e-4,
    text=(5600, 1024), images=(12000, 2000), video=(1600, 640),
)
FULL = replace(
    PAPER_DECODER, name="full", steps=50_000, batch=64, text=(100_000, 4096),
    images=(100_000, 10_000), video=(9_537, 3_783), image_side=224, video_side=224,
)
SCALES = {scale.name: scale for scale in (SMOKE, SMALL, PAPER_DECODER, FULL)}
"""smoke: minutes, for CI. small: under an hour on two cores. medium: the paper's decoder on the
same data, for a GPU. full: the paper's decoder and the paper's data, which the user names."""
