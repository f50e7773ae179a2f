"""Preprocessing against transformers' PIL processors, and images that do not fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from qm_vllm.encoders import EncoderError
from qm_vllm.encoders.pixels import Preprocessing, images_of

DINOV2 = {
    "do_resize": True,
    "size": {"shortest_edge": 61},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 48, "width": 50},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
VIT = {
    "size": {"height": 40, "width": 56},
    "resample": 2,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.5, 0.25, 0.5],
}


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth shapes with some noise, so that resizing has something to get wrong."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [127 + 100 * np.sin(x / (3 + c) + y / (9 - c)) for c in range(3)]
    values = np.stack(waves, -1) + random.normal(0, 12, (height, width, 3))
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("size", [(200, 131), (97, 203), (61, 61), (40, 55), (90, 61)])
@pytest.mark.parametrize(
    ("config", "processor"), [(DINOV2, BitImageProcessorPil), (VIT, ViTImageProcessorPil)]
)
def test_pixels_agree_with_transformers_to_a_grey_level(size, config, processor):
    expected = processor(**config)(picture(*size), return_tensors="pt")["pixel_values"][0]
    actual = Preprocessing.from_config(config, "here")(picture(*size), "picture")
    assert actual.shape == expected.shape
    assert actual.dtype == torch.float32
    error = (actual - expected).abs() * torch.tensor(config["image_std"])[:, None, None] * 255
    assert error.max() <= 1.01  # PIL rounds between its two passes
    assert error.mean() < 0.3


def test_kinds_of_images_give_the_same_pixels():
    image = picture(70, 50)
    array = np.array(image)
    prepare = Preprocessing.from_config(DINOV2, "here")
    expected = prepare(image, "picture")
    assert torch.equal(prepare(array, "picture"), expected)
    assert torch.equal(prepare(torch.from_numpy(array).permute(2, 0, 1), "picture"), expected)
    assert torch.equal(prepare(image.convert("RGBA"), "picture"), expected)


def test_grey_images_become_three_equal_channels():
    grey = picture(70, 50).convert("L")
    plain = Preprocessing(None, None, "bicubic", None, 1.0, (0.0,) * 3, (1.0,) * 3)
    array = np.array(grey)
    expected = torch.from_numpy(array).float().expand(3, -1, -1)
    for image in (grey, array, array[..., None], torch.from_numpy(array)[None]):
        assert torch.equal(plain(image, "picture"), expected)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"size": 30}, {"shorter_side": 30, "size": None}),
        ({"size": 30, "do_center_crop": False}, {"shorter_side": None, "size": (30, 30)}),
        ({"do_resize": False}, {"shorter_side": None, "size": None}),
        ({"crop_size": 20}, {"crop": (20, 20)}),
        ({"do_center_crop": False}, {"crop": None}),
        ({"do_rescale": False}, {"scale": 1.0}),
        ({"do_normalize": False}, {"mean": (0.0,) * 3, "std": (1.0,) * 3}),
    ],
)
def test_settings_of_the_config_file(changes, expected):
    read = Preprocessing.from_config(DINOV2 | changes, "here")
    assert {key: getattr(read, key) for key in expected} == expected


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"resample": 1}, "here: resample 1"),
        ({"size": None}, "here: size None"),
        ({"size": {"longest_edge": 9}}, "here: size .*longest_edge"),
        ({"crop_size": {"height": 9}}, "here: crop_size"),
        ({"image_mean": None}, "here: image_mean None"),
        ({"image_std": [1, 2]}, r"here: image_std \[1, 2\]"),
    ],
)
def test_settings_that_are_not_supported_are_named(changes, words):
    with pytest.raises(EncoderError, match=words):
        Preprocessing.from_config(DINOV2 | changes, "here")


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (torch.zeros(3, 8, 8), r"shape \(3, 8, 8\) and type float32"),
        (np.zeros((8, 8, 3)), r"shape \(8, 8, 3\) and type float64"),
        (np.zeros((8, 8, 4), np.uint8), r"shape \(8, 8, 4\); give \[H, W, C\]"),
        (torch.zeros(8, 8, 3, dtype=torch.uint8), r"shape \(8, 8, 3\); give \[C, H, W\]"),
        (torch.zeros(3, 0, 8, dtype=torch.uint8), r"shape \(3, 0, 8\)"),
        (torch.zeros(8, 8, dtype=torch.uint8), r"shape \(8, 8\)"),
        ("cat.png", "of type str"),
    ],
)
def test_images_that_do_not_fit_are_named_with_their_shape(image, words):
    with pytest.raises(EncoderError, match=f"frame 3 .*{words}"):
        Preprocessing.from_config(DINOV2, "here")(image, "frame 3")


def test_image_smaller_than_the_crop():
    prepare = Preprocessing.from_config(DINOV2 | {"do_resize": False}, "here")
    with pytest.raises(EncoderError, match=r"frame 3 has \(40, 70\) pixels .* crop of \(48, 50\)"):
        prepare(picture(70, 40), "frame 3")


def test_one_image_or_several():
    image, array = picture(9, 7), np.zeros((4, 7, 9, 3), np.uint8)
    assert len(list(images_of(image, "here"))) == 1
    assert len(list(images_of([image, image], "here"))) == 2
    assert [a.shape for a in images_of(array, "here")] == [(7, 9, 3)] * 4
    assert len(list(images_of(torch.zeros(5, 3, 4, 4, dtype=torch.uint8), "here"))) == 5


@pytest.mark.parametrize("source", [[], iter(()), np.zeros((0, 7, 9, 3), np.uint8)])
def test_no_image_is_refused(source):
    with pytest.raises(EncoderError, match="here: the source has no image"):
        images_of(source, "here")


@pytest.mark.parametrize("source", ["cat.png", 3, None])
def test_what_is_no_image_is_refused(source):
    with pytest.raises(EncoderError, match=f"here: a source of type {type(source).__name__}"):
        images_of(source, "here")
