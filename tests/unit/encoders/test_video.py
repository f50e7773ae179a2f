"""VideoMAE against plain transformers: all layers, clips, short tails, bad input."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from torch import Tensor

from qm_vllm.encoders import EncoderError
from qm_vllm.encoders.base import join
from qm_vllm.encoders.pixels import Preprocessing
from qm_vllm.encoders.video import VideoEncoder
from tests.unit.encoders import tiny


def frames(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(256, (count, 3, 16, 16), generator=generator, dtype=torch.uint8)


def encoder() -> VideoEncoder:
    return VideoEncoder(tiny.model("videomae"), tiny.PLAIN, name="tiny videomae")


def clips(video: Tensor) -> Tensor:
    """Pixels [clips, 4, 3, 16, 16], the last frame repeated where the last clip is short."""
    short = -len(video) % 4
    full = torch.cat([video, video[-1:].expand(short, -1, -1, -1)])
    return ((full / 255 - 0.5) / 0.25).view(-1, 4, 3, 16, 16)


def test_one_clip_has_the_states_of_plain_transformers_in_all_layers():
    subject, video = encoder(), frames(4)
    window = subject.encode(video)
    tiny.assert_layers(window, tiny.reference(tiny.model("videomae"), pixel_values=clips(video)))
    assert subject.tokens_per_step == 4
    assert window.states.shape == (8, subject.hidden_size)
    assert len(window.layers) == subject.num_layers + 1
    assert window.token_ids is None
    assert not window.special.any()


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 10, 11])
@pytest.mark.parametrize("per_window", [None, 2])
def test_each_tubelet_of_real_frames_comes_once(count, per_window):
    video = frames(count)
    expected = tiny.reference(tiny.model("videomae"), pixel_values=clips(video))
    windows = list(encoder().stream(iter(video), window=per_window))
    steps = -(-count // 2)
    tiny.assert_layers(join(windows), expected, slice(0, 4 * steps))
    assert len(join(windows)) == 4 * steps
    assert [w.start for w in windows] == [8 * (per_window or 1) * i for i in range(len(windows))]


def test_arrays_of_frames_are_height_width_channel():
    video = frames(6)
    array = video.permute(0, 2, 3, 1).numpy()
    assert torch.equal(encoder().encode(array).states, encoder().encode(video).states)


def test_frames_are_read_lazily_and_windows_let_go():
    taken = []

    def read():
        for frame in frames(40):
            taken.append(1)
            yield frame

    iterator = encoder().stream(read())
    window = next(iterator)
    assert len(taken) == 4
    dead = [weakref.ref(window), *(weakref.ref(layer) for layer in window.layers)]
    del window
    gc.collect()
    assert not any(ref() is not None for ref in dead)
    assert len(list(iterator)) == 9


def test_bad_frame_is_named_with_its_place():
    video = [*frames(5), np.zeros((16, 16, 2), np.uint8)]
    iterator = encoder().stream(video)
    next(iterator)
    with pytest.raises(EncoderError, match=r"tiny videomae: frame 5 has the shape \(16, 16, 2\)"):
        next(iterator)


def test_no_frame_is_refused_at_once():
    with pytest.raises(EncoderError, match="tiny videomae: the source has no image"):
        encoder().stream([])


def test_preprocessing_that_does_not_fit_the_model_is_refused():
    other = Preprocessing(20, None, "bilinear", (20, 20), 1 / 255, (0.5,) * 3, (0.25,) * 3)
    with pytest.raises(EncoderError, match=r"frames of \(20, 20\) pixels, .* takes \(16, 16\)"):
        VideoEncoder(tiny.model("videomae"), other)
    with pytest.raises(EncoderError, match="'vit' is no supported video encoder"):
        VideoEncoder(tiny.model("vit"), tiny.PLAIN)
