"""Sequences of the tables' tasks: scores, windows, images, clips, and what is kept on disk."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from qm_vllm.compress.entropy import attention_entropy
from qm_vllm.prior.batches import merging
from qm_vllm.prior.soft import layer_scores
from qm_vllm_eval.paper import image, sources, text, video
from qm_vllm_eval.paper.prepared import entropies, load, padded_bytes, save, scores
from qm_vllm_eval.paper.scale import SMOKE

SPECIAL = {"cls_token_id": 1, "sep_token_id": 2}


class Tokenizer:
    """One id a word: 3 + its length; 40 ids."""

    cls_token_id, sep_token_id = 1, 2

    def __len__(self):
        return 40

    def __call__(self, text, **_):
        ids, places, at = [], [], 0
        for word in text.split(" "):
            ids.append(3 + len(word))
            places.append((at, at + len(word)))
            at += len(word) + 1
        return {"input_ids": ids, "offset_mapping": places}


class Encoder:
    """States that say which id stands there and how many stand around it."""

    name, device, tokenizer = "fake", torch.device("cpu"), Tokenizer()

    def model(self, input_ids, attention_mask, output_hidden_states):
        assert bool((input_ids[:, 0] == 1).all())
        assert bool((input_ids[:, -1] == 2).all())
        draw = torch.Generator().manual_seed(0)
        table = torch.randn(40, 8, generator=draw)
        base = table[input_ids]
        return SimpleNamespace(hidden_states=[base, base + base.mean(1, keepdim=True), 2 * base])


def words(count, seed):
    rng = np.random.default_rng(seed)
    return " ".join("x" * n for n in rng.integers(1, 9, count))


def test_entropies_are_those_of_the_library():
    states = torch.randn(3, 17, 24, generator=torch.Generator().manual_seed(0))
    scale = merging(24).logit_scale
    for row, found in zip(states, entropies(states), strict=True):
        torch.testing.assert_close(found, attention_entropy(row, scale), rtol=1e-4, atol=1e-5)


def test_scores_are_those_of_training_and_bounded():
    layers = [torch.randn(2, 11, 8, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    relative, absolute = scores(layers)
    wanted = torch.stack([layer_scores(layer[1], math.sqrt(8)) for layer in layers]).mean(0)
    torch.testing.assert_close(relative[1], wanted, rtol=1e-4, atol=1e-5)
    assert relative.min() >= 0
    assert relative.max() <= 1
    assert absolute.max() <= 1


def test_equal_tokens_have_no_order_of_saliency():
    relative, _ = scores([torch.ones(1, 5, 4)])
    assert torch.equal(relative, torch.full((1, 5), 0.5))


def test_bytes_are_padded_and_never_empty():
    raw, lengths = padded_bytes([b"abc", b"", b"h\xc3\xa9"])
    assert raw.tolist() == [[97, 98, 99], [0, 0, 0], [104, 195, 169]]
    assert lengths.tolist() == [3, 1, 3]


def test_text_windows_do_not_overlap_and_know_their_bytes():
    train, test = [words(400, 0)], [words(130, 1)]
    made = text.prepare(train, test, (4, 2), Encoder(), 16, "made up")
    assert made.num_tokens == 16
    assert len(made.train) == 4
    assert made.train.targets.shape == (4, text.TARGETS)
    first = made.train.raw[0, : made.train.raw_lengths[0]].numpy().tobytes().decode()
    assert first == " ".join(train[0].split(" ")[:16])


def test_pieces_that_training_never_saw_are_one_id_with_a_cost():
    train = [" ".join(["x"] * 200)]
    test = [" ".join(["x", "yy", "zzz"] * 40)]
    made = text.prepare(train, test, (2, 1), Encoder(), 16, "made up")
    assert made.vocabulary == 2  # one piece, and all others
    unseen = int((made.test.targets == 1).sum())
    assert unseen > 0
    assert float(made.test.extra_nats[0]) == pytest.approx(unseen * math.log(39))
    assert float(made.train.extra_nats.abs().max()) == 0


def test_a_text_that_is_too_short_says_so():
    with pytest.raises(ValueError, match="test texts hold no 48 tokens"):
        text.prepare([words(200, 0)], ["a b c"], (2, 1), Encoder(), 16, "made up")


class Images:
    """Patch states of a 4 x 4 grid: mean colours, in two layers."""

    name, device, dtype, special_per_image = "fake", torch.device("cpu"), torch.float32, 1

    def model(self, pixel_values, output_hidden_states):
        grid = torch.nn.functional.adaptive_avg_pool2d(pixel_values, 4).flatten(2).mT
        spread = torch.cat((grid, grid.flip(1), grid.square()), 2)
        with_class = torch.cat((spread.mean(1, keepdim=True), spread), 1)
        return SimpleNamespace(hidden_states=[with_class, with_class + 1, with_class * 2])


def batches(count, seed):
    draw = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 28, 28), generator=draw).byte()
    return images.split(5), torch.arange(count) % 3


def test_images_keep_their_labels_and_lose_the_class_token():
    made = image.prepare(batches(12, 0), batches(6, 1), Images(), 56, "made up")
    assert made.train.states.shape == (12, 16, 9)
    assert made.vocabulary == 3
    assert made.test.targets[:, 0].tolist() == [0, 1, 2, 0, 1, 2]
    images = torch.cat(list(batches(12, 0)[0]))
    assert torch.equal(made.train.raw, images.flatten(1))


def test_grey_and_coloured_pixels_have_imagenet_s_scale():
    white = image.pixels(torch.full((1, 8, 8), 255).byte(), 4)
    colour = image.pixels(torch.full((1, 8, 8, 3), 255).byte(), 4)
    torch.testing.assert_close(white, colour)
    wanted = (1 - torch.tensor(image.MEAN)) / torch.tensor(image.DEVIATION)
    torch.testing.assert_close(white[0, :, 0, 0], wanted, rtol=1e-4, atol=1e-4)


def made_up_videos(length=100):
    found = {}
    for number, name in enumerate(("one", "two")):
        rng = np.random.default_rng(number)
        frames = (rng.integers(0, 256, (20, 20, 3), dtype=np.uint8) for _ in range(length))
        found[name] = video.encode(frames, Images(), 56, 2)
    return found


def test_clips_of_training_and_test_share_no_frame():
    videos = made_up_videos(110)
    made = video.prepare(videos, (1000, 1000), "fake", "made up")
    border = int(video.TRAIN_SHARE * 110)
    assert len(made.train) == 2 * (border - video.SPAN + 1)
    assert len(made.test) == 2 * (110 - border - video.SPAN + 1)
    assert made.num_tokens == video.GIVEN * 4
    later = videos["one"]["layers"][-1, video.GIVEN * video.STEP :: video.STEP].float().mean(1)
    torch.testing.assert_close(made.train.truth[0], later[: video.WANTED])
    assert torch.equal(made.train.targets[0], video.nearest(made.train.truth[0], made.codes))


def test_videos_that_are_too_short_say_so():
    with pytest.raises(ValueError, match="more than 31 frames"):
        video.prepare(made_up_videos(60), (10, 10), "fake", "made up")


def test_centres_are_the_means_of_the_rows_nearest_to_them():
    draw = torch.Generator().manual_seed(0)
    middles = torch.tensor([[0.0, 0], [10, 0], [0, 10], [10, 10]])
    rows = (middles[:, None] + 0.1 * torch.randn(4, 50, 2, generator=draw)).flatten(0, 1)
    found = video.centres(rows, 12, seed=3)
    owner = video.nearest(rows, found)
    assert len(owner.unique()) == 12
    for place, centre in enumerate(found):
        torch.testing.assert_close(centre, rows[owner == place].mean(0), atol=1e-3, rtol=1e-3)
    assert torch.cdist(rows, found).min(1).values.max() < 1
    assert len(video.centres(rows[:5], 12, seed=0)) == 5


def test_descriptors_see_motion():
    still = torch.ones(2, 8, 3)
    moving = still * torch.arange(8)[None, :, None]
    assert video.descriptors(still)[:, 3:].abs().max() == 0
    assert torch.equal(video.descriptors(moving)[:, 3:], torch.ones(2, 3))


def test_what_was_prepared_comes_back(tmp_path):
    made = image.prepare(batches(12, 0), batches(6, 1), Images(), 56, "made up")
    save(made, tmp_path / "kept.pt")
    again = load(tmp_path / "kept.pt")
    assert again.data == "made up"
    for name, value in vars(made.test).items():
        assert torch.equal(value, getattr(again.test, name)), name


def test_missing_data_say_how_to_get_them(tmp_path, monkeypatch):
    from qm_vllm_eval.datasets.rows import DataSetError
    from qm_vllm_eval.paper.scale import SCALES

    monkeypatch.setenv("QM_VLLM_CACHE", str(tmp_path))
    monkeypatch.setattr(sources, "load_encoder", lambda name, device: Encoder())
    cases = {"text": "fetch_texts.sh", "image": "fetch_images.sh"}
    for task, script in cases.items():
        with pytest.raises(DataSetError, match=script):
            sources.prepare(task, SCALES["small"], sources.DataPaths(), torch.device("cpu"))
    with pytest.raises(DataSetError, match=r"image-net\.org"):
        sources.prepare("image", SCALES["full"], sources.DataPaths(), torch.device("cpu"))


def test_drawn_pictures_and_videos_are_the_same_every_time():
    first, again = (sources._drawn_images(9, 0) for _ in range(2))
    assert torch.equal(first[0], again[0])
    assert first[1].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0]
    frames = list(sources._drawn_video(1))
    assert len(frames) > video.SPAN / (1 - video.TRAIN_SHARE)
    assert np.array_equal(frames[3], list(sources._drawn_video(1))[3])
    assert SMOKE.images[0] >= 4
