"""Images, audio and video of a request: where its prompt has them instead of text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange
    from vllm.v1.request import Request

EMBEDDINGS = "prompt_embeds"
"""vLLM's name for states that a client sends in the place of text."""


@dataclass(frozen=True)
class Medium:
    """One image, piece of audio or video.

    Attributes:
        kind: vLLM's name for it, such as "image".
        identifier: that of everything with the same contents, and of nothing else.
        ranges: half-open ranges of the prompt's positions whose states come from it.
        counted: it lies where vLLM counts that each request has read it.
    """

    kind: str
    identifier: str
    ranges: tuple[tuple[int, int], ...]
    counted: bool = False


def media_of(request: Request) -> tuple[Medium, ...]:
    """The media of a request, in the order of its prompt."""
    return tuple(_medium(feature) for feature in request.mm_features)


def _medium(feature: MultiModalFeatureSpec) -> Medium:
    place: PlaceholderRange = feature.mm_position
    ranges = tuple((first, last + 1) for first, last in place.extract_embeds_range())
    counted = feature.data is not None and "address" in feature.data
    return Medium(feature.modality, feature.identifier, ranges, counted)
