"""load_encoder: which name gives which encoder, and names that give none."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from qm_vllm.encoders import EncoderError, attention, load_encoder
from qm_vllm.encoders.features import FeatureFiles
from qm_vllm.encoders.text import TextEncoder
from qm_vllm.encoders.video import VideoEncoder
from qm_vllm.encoders.vision import ImageEncoder
from tests.unit.encoders import tiny
from tests.unit.encoders.test_vision import images

PIXELS = {
    "size": {"height": 16, "width": 16},
    "resample": 3,
    "image_mean": [0.5] * 3,
    "image_std": [0.25] * 3,
}


def saved(folder, kind):
    """A folder as transformers writes it, with a tokenizer or a preprocessor_config."""
    tiny.model(kind).save_pretrained(folder)
    if kind in ("vit", "dinov2", "dinov2_with_registers", "videomae"):
        (folder / "preprocessor_config.json").write_text(json.dumps(PIXELS))
    else:
        tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["bert", "roberta", "t5", "bart", "llama"])
def test_folder_with_a_text_model(tmp_path, kind):
    encoder = load_encoder(str(saved(tmp_path, kind)))
    assert isinstance(encoder, TextEncoder)
    assert encoder.name == tmp_path.name
    ids = tiny.tokenizer()(tiny.text(9), return_tensors="pt")["input_ids"]
    window = encoder.encode(tiny.text(9))
    tiny.assert_layers(window, tiny.reference(tiny.model(kind), input_ids=ids))


@pytest.mark.parametrize("kind", ["vit", "dinov2", "dinov2_with_registers"])
def test_folder_with_an_image_model(tmp_path, kind):
    encoder = load_encoder(str(saved(tmp_path, kind)))
    assert isinstance(encoder, ImageEncoder)
    pixels = (images(1) / 255 - 0.5) / 0.25
    tiny.assert_layers(
        encoder.encode(images(1)[0]), tiny.reference(tiny.model(kind), pixel_values=pixels)
    )


def test_folder_with_a_video_model(tmp_path):
    encoder = load_encoder(str(saved(tmp_path, "videomae")))
    assert isinstance(encoder, VideoEncoder)
    pixels = ((images(4) / 255 - 0.5) / 0.25)[None]
    tiny.assert_layers(
        encoder.encode(images(4)), tiny.reference(tiny.model("videomae"), pixel_values=pixels)
    )


def test_folder_and_file_of_features(tmp_path):
    torch.save(torch.ones(3, 4), tmp_path / "a.pt")
    for place in (tmp_path, tmp_path / "a.pt"):
        assert isinstance(load_encoder(str(place)), FeatureFiles)


def test_type_of_the_weights(tmp_path):
    folder = saved(tmp_path, "bert")
    assert load_encoder(str(folder)).encode("w1").states.dtype == torch.float32
    half = load_encoder(str(folder), dtype=torch.bfloat16).encode("w1 w2")
    assert half.states.dtype == torch.bfloat16
    tiny.model("bert").bfloat16().save_pretrained(folder)
    assert load_encoder(str(folder)).encode("w1").states.dtype == torch.bfloat16
    vision = load_encoder(str(saved(tmp_path / "v", "vit")), dtype=torch.bfloat16)
    assert vision.encode(images(1)[0]).states.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["/no/such/folder", "./features.npy", "talk.pt", "~/nowhere"])
def test_paths_that_do_not_exist(name):
    with pytest.raises(EncoderError, match="there is no file or folder"):
        load_encoder(name)


def test_name_that_no_hub_gives(monkeypatch):
    def unreachable(*_, **__):
        raise OSError("no connection.\nmore")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", unreachable)
    with pytest.raises(EncoderError, match=r"'some/model' is no encoder .* \(no connection\)"):
        load_encoder("some/model")


def test_config_of_an_unknown_type(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "nonesuch"}')
    with pytest.raises(EncoderError, match="is no encoder that can be loaded"):
        load_encoder(str(tmp_path))


def test_image_models_of_other_kinds(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "swin"}')
    with pytest.raises(EncoderError, match=r"'swin' .*dinov2, .*vit"):
        load_encoder(str(tmp_path))


def test_missing_tokenizer_weights_and_preprocessing(tmp_path):
    tiny.model("bert").save_pretrained(tmp_path / "a")
    with pytest.raises(EncoderError, match="a: the tokenizer knows special tokens only"):
        load_encoder(str(tmp_path / "a"))
    folder = saved(tmp_path / "b", "bert")
    (folder / "model.safetensors").unlink()
    with pytest.raises(EncoderError, match="b: the weights cannot be loaded as BertModel"):
        load_encoder(str(folder))
    folder = saved(tmp_path / "c", "vit")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(EncoderError, match=r"c: there is no preprocessor_config.json"):
        load_encoder(str(folder))
    (folder / "preprocessor_config.json").write_text("{")
    with pytest.raises(EncoderError, match=r"c: preprocessor_config.json is no readable JSON"):
        load_encoder(str(folder))


def test_weights_that_are_not_in_the_file_are_not_made_up(tmp_path):
    file = saved(tmp_path, "bert") / "model.safetensors"
    weights = load_file(file)
    lost = "encoder.layer.1.attention.self.query.weight"
    save_file({k: v for k, v in weights.items() if k != lost}, file, {"format": "pt"})
    with pytest.raises(EncoderError, match=f"1 weights of BertModel .* '{lost}'"):
        load_encoder(str(tmp_path))
    unused = {k: v for k, v in weights.items() if not k.startswith("pooler")}
    save_file(unused, file, {"format": "pt"})
    assert load_encoder(str(tmp_path)).encode("w1").states.shape == (3, 32)


@pytest.mark.parametrize(
    ("device", "dtype", "there", "flags", "expected"),
    [
        ("cuda", torch.bfloat16, True, {"flash": True, "sdpa": True}, "flash_attention_2"),
        ("cuda", torch.float16, True, {"flash": True, "sdpa": False}, "flash_attention_2"),
        ("cuda", torch.bfloat16, True, {"flash": False, "sdpa": True}, "sdpa"),
        ("cuda", torch.bfloat16, False, {"flash": True, "sdpa": True}, "sdpa"),
        ("cuda", torch.float32, True, {"flash": True, "sdpa": True}, "sdpa"),
        ("cuda", None, True, {"flash": True, "sdpa": True}, "sdpa"),
        ("cpu", torch.bfloat16, True, {"flash": True, "sdpa": True}, "sdpa"),
        ("cpu", torch.float32, False, {"flash": False, "sdpa": False}, "eager"),
    ],
)
def test_attention_kernel(monkeypatch, device, dtype, there, flags, expected):
    monkeypatch.setattr(attention, "find_spec", lambda name: object() if there else None)
    cls = SimpleNamespace(_supports_flash_attn=flags["flash"], _supports_sdpa=flags["sdpa"])
    assert attention.choose(cls, torch.device(device), dtype) == expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_device_that_is_not_there():
    with pytest.raises(EncoderError, match="device is 'cuda', but this machine has no CUDA"):
        load_encoder("minilm", device="cuda")


def test_window_cannot_be_changed(tmp_path):
    torch.save(torch.ones(3, 4), tmp_path / "a.pt")
    window = load_encoder(str(tmp_path)).encode("a")
    with pytest.raises(dataclasses.FrozenInstanceError):
        window.start = 3
