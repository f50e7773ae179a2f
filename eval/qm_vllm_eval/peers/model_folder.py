"""Makes a model folder written by transformers 5 readable for the transformers 4 of the peers.

transformers 4 does not refuse such a folder: it leaves ``rope_parameters`` alone and computes
with its default ``rope_theta``, which is another model without a word of warning.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CONFIG, TOKENIZER = "config.json", "tokenizer_config.json"


@contextmanager
def readable_folder(folder: str | Path) -> Iterator[Path]:
    """A folder with the same model that both transformers 4 and 5 read alike.

    Links to all files, next to rewritten settings, in a temporary folder that is gone afterwards.

    Raises:
        FileNotFoundError: no config.json.
        ValueError: its rotary settings cannot be said in the words of transformers 4.
    """
    source = Path(folder).resolve()
    config = json.loads((source / CONFIG).read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory(prefix="qm-vllm-peer-") as made:
        target = Path(made)
        for path in source.iterdir():
            if path.name not in (CONFIG, TOKENIZER):
                (target / path.name).symlink_to(path)
        _write(target / CONFIG, classic_config(config))
        if (source / TOKENIZER).exists():
            settings = json.loads((source / TOKENIZER).read_text(encoding="utf-8"))
            _write(target / TOKENIZER, classic_tokenizer(settings))
        yield target


def classic_config(config: dict[str, Any]) -> dict[str, Any]:
    """config.json in the words of transformers 4, with those of 5 left in.

    Raises:
        ValueError: rotary settings per kind of layer, or without ``rope_theta``.
    """
    config = dict(config)
    if "dtype" in config:
        config.setdefault("torch_dtype", config["dtype"])
    rope = config.get("rope_parameters")
    if rope is None:
        return config
    if not isinstance(rope.get("rope_theta"), int | float):
        raise ValueError("rope_parameters without one rope_theta for all layers")
    rest = {key: value for key, value in rope.items() if key != "rope_theta"}
    config["rope_theta"] = rope["rope_theta"]
    if "partial_rotary_factor" in rest:
        config["partial_rotary_factor"] = rest.pop("partial_rotary_factor")
    plain = rest.get("rope_type", "default") == "default"
    config["rope_scaling"] = None if plain else rest
    return config


def classic_tokenizer(settings: dict[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json in the words of transformers 4."""
    settings = dict(settings)
    if settings.get("tokenizer_class") == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    extra = settings.get("extra_special_tokens")
    if isinstance(extra, list):  # a mapping in transformers 4
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    return settings


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
