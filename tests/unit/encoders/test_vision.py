"""ViT and DINOv2 against plain transformers: all layers, sequences of images, bad input."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor

from qm_vllm.encoders import EncoderError
from qm_vllm.encoders.base import join
from qm_vllm.encoders.pixels import Preprocessing
from qm_vllm.encoders.vision import ImageEncoder
from tests.unit.encoders import tiny

SPECIAL = {"vit": 1, "dinov2": 1, "dinov2_with_registers": 4}
KINDS = tuple(SPECIAL)


def images(count: int, size: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


def encoder(kind: str, preprocessing: Preprocessing = tiny.PLAIN) -> ImageEncoder:
    return ImageEncoder(tiny.model(kind), preprocessing, name=f"tiny {kind}")


def pixels(batch: Tensor) -> Tensor:
    return (batch / 255 - 0.5) / 0.25


@pytest.mark.parametrize("kind", KINDS)
def test_one_image_has_the_states_of_plain_transformers_in_all_layers(kind):
    subject, image = encoder(kind), images(1)
    window = subject.encode(image[0])
    tiny.assert_layers(window, tiny.reference(tiny.model(kind), pixel_values=pixels(image)))
    special = SPECIAL[kind]
    assert window.special.tolist() == [True] * special + [False] * 4
    assert window.token_ids is None
    assert len(window.layers) == subject.num_layers + 1
    assert window.states.shape == (special + 4, subject.hidden_size)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("per_window", [None, 1, 2, 9])
def test_images_stream_as_a_sequence(kind, per_window):
    subject, several = encoder(kind), images(5)
    expected = tiny.reference(tiny.model(kind), pixel_values=pixels(several))
    windows = list(subject.stream(iter(several), window=per_window))
    assert len(windows) == {None: 5, 1: 5, 2: 3, 9: 1}[per_window]
    joined = join(windows)
    tiny.assert_layers(joined, expected)
    each = SPECIAL[kind] + 4
    assert [w.start for w in windows] == [each * (per_window or 1) * i for i in range(len(windows))]
    assert joined.special.view(5, each).sum(1).tolist() == [SPECIAL[kind]] * 5


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_another_size_than_trained(kind):
    keep = Preprocessing(None, None, "bicubic", None, 1 / 255, (0.5,) * 3, (0.25,) * 3)
    batch = images(2, 24)
    extra = {"interpolate_pos_encoding": True} if kind == "vit" else {}
    expected = tiny.reference(tiny.model(kind), pixel_values=pixels(batch), **extra)
    tiny.assert_layers(encoder(kind, keep).encode(batch), expected)
    mixed = [images(1, 24)[0], images(1)[0]]
    sizes = [len(w) - SPECIAL[kind] for w in encoder(kind, keep).stream(mixed)]
    assert sizes == [9, 4]
    with pytest.raises(EncoderError, match=r"\(3, 16, 16\), \(3, 24, 24\).*window=1"):
        list(encoder(kind, keep).stream(mixed, window=2))


def test_images_are_read_lazily_and_windows_let_go():
    taken = []

    def frames():
        for image in images(6):
            taken.append(1)
            yield image

    iterator = encoder("dinov2").stream(frames())
    window = next(iterator)
    assert len(taken) == 1
    dead = [weakref.ref(window), *(weakref.ref(layer) for layer in window.layers)]
    del window
    gc.collect()
    assert not any(ref() is not None for ref in dead)
    assert len(list(iterator)) == 5


def test_bad_image_later_in_a_sequence_is_named_with_its_place():
    sequence = [*images(2), torch.zeros(3, 8, 8)]
    iterator = encoder("vit").stream(sequence)
    next(iterator)
    next(iterator)
    with pytest.raises(EncoderError, match=r"tiny vit: image 2 has the shape \(3, 8, 8\)"):
        next(iterator)


def test_states_that_are_not_finite_are_refused():
    subject = encoder("vit")
    with torch.no_grad():
        subject.model.embeddings.cls_token[0, 0, 3] = float("nan")
    with pytest.raises(EncoderError, match=r"tiny vit: the states at the exit hold nan in row 0"):
        subject.encode(images(1)[0])


def test_empty_sequence_and_wrong_window_are_refused_at_once():
    with pytest.raises(EncoderError, match="tiny vit: the source has no image"):
        encoder("vit").stream([])
    with pytest.raises(EncoderError, match="tiny vit: window is 0"):
        encoder("vit").stream(images(1), window=0)


def test_other_model_types_are_refused():
    with pytest.raises(EncoderError, match="'bert' is no supported image encoder"):
        ImageEncoder(tiny.model("bert"), tiny.PLAIN)
