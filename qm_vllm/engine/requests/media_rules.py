"""What becomes of prompts with images, audio or video."""

from __future__ import annotations

from collections.abc import Sequence

from qm_vllm.engine.untouched import Untouched
from qm_vllm_patches.media import Medium
from qm_vllm_patches.requests import Arrival

KIND = "multimodal"


def refuse_media(arrival: Arrival, delivery: str) -> None:
    """Refuse prompts with media that cannot be compressed.

    Raises:
        Untouched: ``delivery`` is one that reads ids alone, vLLM counts who has read the media, or
            nothing stands behind them: the last token is computed anew, from its id.
    """
    if not arrival.media:
        return
    if delivery != "native":
        raise Untouched(
            KIND,
            f'the prompt has images, audio or video, of which delivery="{delivery}" sees no more '
            'than the ids that hold their places; use delivery="native"',
        )
    if any(one.counted for one in arrival.media):
        raise Untouched(
            KIND,
            "the prompt's images, audio or video lie in shared memory, where vLLM counts that "
            'each request reads them; use mm_processor_cache_type="lru", vLLM\'s default',
        )
    last = arrival.tokens - 1
    if any(start <= last < stop for one in arrival.media for start, stop in one.ranges):
        raise Untouched(
            KIND, "the prompt ends with images, audio or video; put text behind them"
        )


def without_media(positions: Sequence[int], media: Sequence[Medium]) -> list[int]:
    """The positions that are text: the id that holds an image's places is no mark of a chat."""
    places = {
        place for one in media for start, stop in one.ranges for place in range(start, stop)
    }
    return [position for position in positions if position not in places]
