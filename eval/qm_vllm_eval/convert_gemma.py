"""Gemma 3 270M as its packages ship it, made into a folder that transformers and vLLM load.

``scripts/fetch_gemma.sh`` calls it. The weights were rounded to four bits (Q4_K_M) and are
dequantised to bf16; they are under the Gemma terms of use.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

NAME = "gemma-3-270m"
GGUF = "model.gguf"


def join(parts: list[Path], target: Path) -> None:
    """Write the parts one after the other into one file."""
    with target.open("wb") as whole:
        for part in parts:
            with part.open("rb") as piece:
                shutil.copyfileobj(piece, whole)


def begin_with_bos(tokenizer: dict[str, Any], bos: str = "<bos>") -> dict[str, Any]:
    """The tokenizer's JSON with BOS put in front of a text, which its GGUF conversion forgets.

    Args:
        tokenizer: content of a tokenizer.json that knows the token ``bos``.
    """
    number = next(t["id"] for t in tokenizer["added_tokens"] if t["content"] == bos)
    first = {"SpecialToken": {"id": bos, "type_id": 0}}
    one, other = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}
    made = dict(tokenizer)
    made["post_processor"] = {
        "type": "TemplateProcessing", "single": [first, one], "pair": [first, one, other],
        "special_tokens": {bos: {"id": bos, "ids": [number], "tokens": [bos]}},
    }
    return made


def convert(source: Path, folder: Path) -> None:
    """Dequantise ``source``/model.gguf into ``folder``."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=GGUF, quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(folder)
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(begin_with_bos(json.loads(file.read_text()))))


def main() -> None:
    """Convert the parts under a folder of unpacked packages, all or nothing."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("packages", type=Path, help="folder with the unpacked packages")
    parser.add_argument("target", type=Path, help="folder to make")
    arguments = parser.parse_args()
    parts = sorted(arguments.packages.rglob("*.gguf.part*"))
    if not parts:
        raise SystemExit(f"no *.gguf.part* files under {arguments.packages}")
    arguments.target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.target.parent) as work:
        source, made = Path(work, "gguf"), Path(work, NAME)
        source.mkdir()
        join(parts, source / GGUF)
        convert(source, made)
        made.chmod(0o755)
        made.rename(arguments.target)
    print(arguments.target)


if __name__ == "__main__":
    main()
