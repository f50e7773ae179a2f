"""Requests of vLLM's scheduler: read when they arrive, shrunk before any block is allocated."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qm_vllm_patches import first_token
from qm_vllm_patches.media import EMBEDDINGS, Medium, media_of

if TYPE_CHECKING:
    from vllm.v1.request import Request

    from qm_vllm_patches.block_pool import BlockStore
    from qm_vllm_patches.company import Company


@dataclass(frozen=True, eq=False)
class Arrival:
    """A request as the plug-in needs it, and the handle that edits it.

    Attributes:
        tokens: of the prompt. token_ids: None where it has embeddings instead.
        extra_args: of its sampling parameters; generates: it has such parameters at all.
        salt: its own cache salt. lora: name of its adapter.
        one_token: its answer has no more than one token. max_tokens: the most that it may have.
        first: another request may sample its first token. first_shared: which is then the same as
            that of all such requests.
        priority: the lower, the earlier; 0 where the engine does not schedule by it.
        schema: JSON schema of its answer, as text or read; None: it may be anything.
        media: images, audio and video in its prompt.
    """

    request_id: str
    tokens: int
    token_ids: list[int] | None
    extra_args: dict[str, Any] | None
    salt: str | None
    generates: bool
    has_embeddings: bool
    resumable: bool
    lora: str | None
    prompt_logprobs: bool
    handle: RequestHandle
    one_token: bool = False
    first: bool = False
    first_shared: bool = False
    priority: int = 0
    schema: str | dict[str, Any] | None = None
    max_tokens: int = 1
    media: tuple[Medium, ...] = ()


class RequestHandle:
    """Edits one waiting request that holds no blocks.

    Attributes:
        media: the images, audio and video that the request came with, as vLLM has them.
        store: the engine's KV blocks.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.store: BlockStore | None = None
        self.company: Company | None = None
        self.media: list[Any] = request.mm_features

    @property
    def request_id(self) -> str:
        """vLLM's id of it."""
        return str(self.request.request_id)

    @property
    def skips_cache(self) -> bool:
        """It shall not read the prefix cache."""
        return bool(self.request.skip_reading_prefix_cache)

    @skips_cache.setter
    def skips_cache(self, value: bool) -> None:
        self.request.skip_reading_prefix_cache = value

    @property
    def started(self) -> bool:
        """It has computed or generated something, or holds blocks."""
        return bool(self.request.num_computed_tokens or self.request.num_output_tokens)

    def elsewhere(self, computed: int) -> int | None:
        """How many positions beyond those computed another connector has; None: ask again."""
        return 0 if self.company is None else self.company.elsewhere(self.request, computed)

    def resize(self, token_ids: Sequence[int], salt: str | None) -> None:
        """Replace the prompt by one whose KV is brought, without images, audio and video.

        vLLM would look for these where they were, and encode them again.

        Args:
            token_ids: the new prompt (the kept ids, order kept).
            salt: of its block hashes from now on.

        Raises:
            RuntimeError: the request has already started.
        """
        self._replace(token_ids, salt, [])

    def restore(self, token_ids: Sequence[int], salt: str | None) -> None:
        """Replace the prompt by the one that came, with all that it had.

        Raises:
            RuntimeError: the request has already started.
        """
        self._replace(token_ids, salt, self.media)

    def _replace(self, token_ids: Sequence[int], salt: str | None, media: list[Any]) -> None:
        request = self.request
        if self.started:
            raise RuntimeError(f"request {request.request_id} has started; it cannot be resized")
        # A new list: the in-process engine shares the old one with its frontend.
        request.prompt_token_ids = list(token_ids)
        # In place: a read-only view wraps this list.
        request._all_token_ids[:] = token_ids
        request.num_prompt_tokens = len(token_ids)
        request.mm_features = media
        self.resalt(salt)

    def leave_out(self, blocks: int) -> None:
        """Its first blocks are nobody's in layers that keep less than others."""
        if self.store is not None:
            self.store.leave_out(self.request_id, blocks)

    def may_begin_with(self, token: int) -> bool:
        """Whether its answer may begin with this token and go on: it has not started otherwise."""
        return not self.started and not first_token.ends(self.request.sampling_params, token)

    def begin_with(self, token: int) -> None:
        """The first token of its answer is known.

        Raises:
            RuntimeError: the request has already started.
        """
        if self.started:
            raise RuntimeError(f"request {self.request_id} has started; it has a first token")
        first_token.begin(self.request, token)

    def resalt(self, salt: str | None) -> None:
        """Give the request's blocks other hashes (its KV is no longer what the salt stood for)."""
        request = self.request
        self.leave_out(0)
        request.cache_salt = salt
        request.block_hashes = []
        request._prompt_embeds_per_block_hashes = {}
        request.update_block_hashes()
        if self.company is not None:
            self.company.changed(request)


def arrival(
    request: Request, *, own_sampling: bool = False, by_priority: bool = False
) -> Arrival:
    """Read a request that has just been added to the scheduler.

    Args:
        own_sampling: the engine has processors of logits that vLLM does not know.
        by_priority: the engine schedules by priority.
    """
    params, ids = request.sampling_params, request.prompt_token_ids
    first = not own_sampling and first_token.can_be_given(params)
    media = media_of(request)
    return Arrival(
        request_id=request.request_id,
        tokens=request.num_prompt_tokens,
        token_ids=None if ids is None else list(ids),
        extra_args=None if params is None else params.extra_args,
        salt=request.cache_salt,
        generates=params is not None,
        has_embeddings=(
            ids is None or request.prompt_embeds is not None
            or any(one.kind == EMBEDDINGS for one in media)
        ),
        resumable=bool(request.resumable),
        lora=None if request.lora_request is None else request.lora_request.lora_name,
        prompt_logprobs=params is not None and params.prompt_logprobs is not None,
        handle=RequestHandle(request),
        one_token=params is not None and params.max_tokens == 1,
        max_tokens=1 if params is None else params.max_tokens or 1,
        first=first,
        first_shared=first and params is not None and first_token.is_the_same_for_all(params),
        priority=request.priority if by_priority else 0,
        schema=getattr(params and params.structured_outputs, "json", None),
        media=media,
    )


def self_check(kept: Sequence[int] = (0, 2, 3, 7)) -> str | None:
    """Edit requests in every way, and compare them with requests that were built so.

    Returns:
        None, or a sentence that names the attributes which this vLLM handles differently.
    """
    from vllm.sampling_params import SamplingParams
    from vllm.v1.request import Request

    source = list(range(100, 110))
    chosen = [source[i] for i in kept]

    def build(ids: list[int], max_tokens: int = 4) -> Request:
        params = SamplingParams(max_tokens=max_tokens)
        return Request("check", ids, params, None, arrival_time=0.0, block_hasher=_hasher)

    resized, restored = build(list(source)), build(list(source))
    RequestHandle(resized).resize(chosen, None)
    RequestHandle(restored).resize(chosen, "salt")
    RequestHandle(restored).restore(source, None)
    begun = build(list(source))
    RequestHandle(begun).resize(chosen, None)
    RequestHandle(begun).begin_with(7)
    skip = {"sampling_params", "_block_hasher", "prefill_stats"}
    different = sorted({
        name
        for made, expected in (
            (resized, build(chosen)), (restored, build(source)), (begun, build([*chosen, 7], 3)),
        )
        for name in vars(expected)
        if name not in skip and _plain(vars(expected)[name]) != _plain(vars(made).get(name))
    })
    if not different:
        missing = first_token.unknown()
        return f"SamplingParams has no {', '.join(sorted(missing))}" if missing else None
    return f"this vLLM's Request has state that resizing does not know: {', '.join(different)}"


def _hasher(request: Request) -> list[bytes]:
    size = 2
    have = len(request.block_hashes)
    ids = request._all_token_ids
    return [
        hashlib.sha256(repr(ids[: (i + 1) * size]).encode()).digest()
        for i in range(have, len(ids) // size)
    ]


def _plain(value: object) -> object:
    is_view = type(value).__name__ == "ConstantList"
    return list(value) if is_view else value  # type: ignore[call-overload]
