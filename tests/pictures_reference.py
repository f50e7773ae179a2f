"""What the native delivery must compute of prompts with pictures, on transformers alone.

As :mod:`tests.native_reference`: nothing moves. Rows are masked by their order in the prompt; what
they are turned by is transformers' own count of positions, along three axes for Qwen2-VL.
"""

from __future__ import annotations

from typing import Any

import torch
from PIL.Image import Image
from transformers import AutoModelForImageTextToText

from tests.native_reference import ROWS, Continuation, NativeReference, Rows
from tests.pictures import PICTURE, SPECIAL, VIDEO, images_of


class PictureReference(NativeReference):
    """One model in float32.

    Args:
        kind: of :data:`tests.pictures.KINDS`.
    """

    def __init__(self, folder: str, kind: str) -> None:
        self.model = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=torch.float32,
            attn_implementation={"": "eager", "text_config": "rows", "vision_config": "eager"},
        ).eval()
        self.kind, self.images = kind, images_of(kind)
        self.seen: dict[str, torch.Tensor] = {}
        self.film: dict[str, torch.Tensor] = {}
        self.places = torch.empty(0)

    def ids(self, ids: list[int], pictures: list[Image]) -> list[int]:
        """The prompt with an id for each of its pictures' places; they are shown from here on."""
        self.seen = dict(self.images(images=pictures, return_tensors="pt")) if pictures else {}
        self.film = {}
        counts = iter(self._sizes(len(pictures)))
        return [
            one for token in ids for one in [token] * (next(counts) if token == PICTURE else 1)
        ]

    def _sizes(self, pictures: int) -> list[int]:
        if self.kind == "llava":
            return [144] * pictures
        return [int(grid.prod()) // 4 for grid in self.seen.get("image_grid_thw", [])]

    def answer(self, ids: list[int], pictures: list[Image], **options: Any) -> Continuation:
        """The greedy continuation of a prompt of which some positions stay."""
        return self.generate(self.ids(ids, pictures), special=SPECIAL, **options)

    def answer_film(
        self, ids: list[int], film: dict[str, torch.Tensor], **options: Any
    ) -> Continuation:
        """The same of a prompt with a video, which is there as encoded states."""
        self.seen, self.film = {}, film
        count = len(film["video_embeds"])
        whole = [one for token in ids for one in [token] * (count if token == VIDEO else 1)]
        return self.generate(whole, special=SPECIAL, **options)

    def _step(self, rows: Rows, ids: list[int], start: int) -> torch.Tensor:
        ROWS[0], rows.now = rows, torch.arange(start, start + len(ids))
        tokens, shown = torch.tensor([ids]), {}
        if start == 0 and self.film:
            states = self.model.get_input_embeddings()(tokens)
            states[tokens == VIDEO] = self.film["video_embeds"]
            places = self.places = self.model.model.get_rope_index(
                tokens, 2 * (tokens == VIDEO).int(), video_grid_thw=self.film["video_grid_thw"]
            )[0]
            tokens, shown = None, {"inputs_embeds": states}
        elif start == 0:
            shown, self.places = self.seen, rows.now.expand(3, 1, -1)
            if self.kind != "llava" and shown:
                self.places, _ = self.model.model.get_rope_index(
                    tokens, (tokens == PICTURE).int(), shown["image_grid_thw"]
                )
            places = self.places
        else:  # text behind the prompt's last token, which is text
            missing = start - self.places.shape[-1]
            places = (self.places[..., -1:] + 1 + missing + torch.arange(len(ids)))
        out = self.model(
            tokens, position_ids=places[0] if self.kind == "llava" else places, use_cache=False,
            logits_to_keep=1, **shown,
        )
        return out.logits[0, -1].float()
