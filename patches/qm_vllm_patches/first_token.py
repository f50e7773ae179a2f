"""An answer's first token, sampled by the request that prefilled the whole prompt for another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.sampling_params import SamplingParams
    from vllm.v1.request import Request

FREE = frozenset({
    "temperature", "top_p", "top_k", "min_p", "logit_bias", "allowed_token_ids",  # of one step
    "n", "max_tokens", "min_tokens", "ignore_eos", "stop", "stop_token_ids",
    "_eos_token_id", "_all_stop_token_ids",
    # of the text that the frontend makes of tokens, and of us
    "detokenize", "skip_special_tokens", "spaces_between_special_tokens", "output_kind",
    "include_stop_str_in_output", "output_text_buffer_length", "stream_interval", "flat_logprobs",
    "skip_clone", "extra_args", "skip_reading_prefix_cache",
})
"""Parameters that mean the same in a request that samples the first token alone. All others must
have vLLM's defaults: they depend on earlier tokens of the answer (penalties, grammars, bad words),
on a generator of the request's own (seed), or ask for figures beside the tokens (logprobs)."""


def unknown() -> set[str]:
    """Parameters of :data:`FREE` that this vLLM does not have."""
    from vllm.sampling_params import SamplingParams

    return set(FREE - set(SamplingParams.__struct_fields__))


def can_be_given(params: SamplingParams | None) -> bool:
    """Whether another request may sample the first token for one with these parameters."""
    if params is None or params.max_tokens is None or params.max_tokens < 2:
        return False
    plain = type(params)()
    for name in type(params).__struct_fields__:
        value, default = getattr(params, name), getattr(plain, name)
        if name in FREE or value is default or (name == "watermarking" and value is False):
            continue
        if default is None or value != default:  # some values are arrays
            return False
    return True


def is_the_same_for_all(params: SamplingParams) -> bool:
    """Whether all requests with such parameters, whose token can be given, sample the same one."""
    return params.temperature == 0 and not (
        params.logit_bias or params.allowed_token_ids or params.min_tokens
    )


def sampling(params: SamplingParams | None) -> SamplingParams:
    """Parameters of a request that samples the first token alone.

    Args:
        params: of the request that it is for; None: nobody's.
    """
    from vllm.sampling_params import SamplingParams

    if params is None:
        return SamplingParams(max_tokens=1, temperature=0.0)
    own = params.clone()
    own.n, own.max_tokens, own.min_tokens = 1, 1, min(1, params.min_tokens)
    own.extra_args = own.skip_reading_prefix_cache = None
    return own


def ends(params: Any, token: int) -> bool:
    """Whether an answer is over with this token."""
    return token == params.eos_token_id or token in (params.stop_token_ids or ())


def begin(request: Request, token: int) -> None:
    """Let a waiting request go on behind its first token.

    For the engine the token stands at the prompt's end, and one fewer is to come; the request's
    frontend counts for itself.
    """
    assert request.prompt_token_ids is not None
    assert request.sampling_params is not None
    # A new list: the in-process engine shares the old one with its frontend, which with its user.
    request.prompt_token_ids = [*request.prompt_token_ids, token]
    request._all_token_ids.append(token)
    request.num_prompt_tokens += 1
    request.update_block_hashes()
    params = request.sampling_params.clone()  # which is shared, too
    assert params.max_tokens is not None
    params.max_tokens, params.min_tokens = params.max_tokens - 1, max(0, params.min_tokens - 1)
    request.sampling_params, request.max_tokens = params, params.max_tokens
