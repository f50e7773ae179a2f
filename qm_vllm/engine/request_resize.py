"""The only code that edits a scheduler ``Request``: the prompt shrinks before any allocation."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from vllm.sampling_params import SamplingParams
from vllm.v1.request import Request


def resize_prompt(request: Request, token_ids: list[int], cache_salt: str | None) -> None:
    """Replace the prompt of a waiting request that holds no blocks.

    Args:
        request: a request that has computed and generated nothing.
        token_ids: the new prompt (the kept ids, order kept).
        cache_salt: makes the block hashes differ from those of an ordinary prompt with the
            same ids; None keeps the request's own salt.

    Raises:
        RuntimeError: the request has already started.
    """
    if request.num_computed_tokens or request.num_output_tokens:
        raise RuntimeError(f"request {request.request_id} has started; it cannot be resized")
    # A new list: the in-process engine shares the old one with its frontend.
    request.prompt_token_ids = list(token_ids)
    # In place: a read-only view wraps this list.
    request._all_token_ids[:] = token_ids
    request.num_prompt_tokens = len(token_ids)
    if cache_salt is not None:
        request.cache_salt = cache_salt
    rehash(request)


def resalt(request: Request, cache_salt: str) -> None:
    """Give the request's blocks other hashes (its KV is no longer what the salt stood for)."""
    request.cache_salt = cache_salt
    rehash(request)


def rehash(request: Request) -> None:
    """Recompute the prefix-cache hashes of all full blocks."""
    request.block_hashes = []
    request._prompt_embeds_per_block_hashes = {}
    request.update_block_hashes()


def chained_salt(original: str | None, key: str) -> str:
    """Salt of injected KV: bound to the job's key and to the user's own salt."""
    return hashlib.sha256(f"{original or ''}|{key}".encode()).hexdigest()


def self_check(kept: Sequence[int] = (0, 2, 3, 7)) -> str | None:
    """Resize a request and compare it with one that was built from the kept ids.

    Returns:
        None, or a sentence that names the attributes which this vLLM handles differently.
    """
    source = list(range(100, 110))

    def build(ids: list[int]) -> Request:
        params = SamplingParams(max_tokens=4)
        return Request("check", ids, params, None, arrival_time=0.0, block_hasher=_hasher)

    resized = build(list(source))
    resize_prompt(resized, [source[i] for i in kept], None)
    expected = build([source[i] for i in kept])
    skip = {"sampling_params", "_block_hasher", "prefill_stats"}
    different = [
        name
        for name in vars(expected)
        if name not in skip and _plain(vars(expected)[name]) != _plain(vars(resized).get(name))
    ]
    if not different:
        return None
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
