"""Prompts longer than ``max_model_len``: frontends let them through, up to a bound of ours.

vLLM holds a prompt to the model's length where it is tokenized, where it becomes a request, and
where the tokens that are left for an answer are counted. All three read the frontend's
configuration. A frontend here gets a copy of it with a larger length; the engine keeps its own.
"""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable
from typing import Any

from qm_vllm_patches.settings import connector_options

Refusal = Callable[[dict[str, Any], Any, int, int, int], "str | None"]
"""``refusal(options, extra_args, tokens, max_tokens, max_model_len)``: why a prompt that is longer
than the model's length cannot be served, or None."""

SERVED = "_qm_vllm_max_model_len"
"""Attribute of a frontend's widened ModelConfig: the engine's own length."""
_served: dict[int, int] = {}
"""Frontends' lengths in this process, and the most that an engine behind one of them has."""


def admit_long_prompts(
    key: str, scheduler: str, bound: Callable[[dict[str, Any]], int | None], refusal: Refusal
) -> None:
    """Let this process's frontends admit them from now on; a second call does nothing.

    Args:
        key: of the plug-in's options in the connector's extra configuration.
        scheduler: import path of the scheduler class without which nothing longer is admitted: it
            alone can end a request that then cannot be served.
        bound: the longest prompt that is admitted with such options; None: the model's length.
    """
    try:
        from vllm.entrypoints.serve.utils.api_utils import get_max_tokens
        from vllm.exceptions import VLLMValidationError
        from vllm.v1.engine.async_llm import AsyncLLM
        from vllm.v1.engine.input_processor import InputProcessor
        from vllm.v1.engine.llm_engine import LLMEngine
    except ImportError:  # the engine's own check says so, with a sentence
        return
    if hasattr(InputProcessor.process_inputs, "__wrapped__"):
        return
    for engine in (LLMEngine, AsyncLLM):
        _widen_after_start(engine, key, scheduler, bound)
    process = InputProcessor.process_inputs

    @functools.wraps(process)
    def process_inputs(
        self: Any, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any
    ) -> Any:
        options = options_of(self.vllm_config, key)
        if options is None:
            return process(self, request_id, prompt, params, *args, **kwargs)
        served = served_length(self.model_config)
        if getattr(params, "max_tokens", 0) is None:  # as many as fit, which the engine counts
            params = params.clone()
            params.max_tokens = served
        request = process(self, request_id, prompt, params, *args, **kwargs)
        ids, sampling = request.prompt_token_ids, request.sampling_params
        if ids is not None and len(ids) >= served:
            most = 1 if sampling is None else sampling.max_tokens
            extra = None if sampling is None else sampling.extra_args
            if problem := refusal(options, extra, len(ids), most, served):
                raise VLLMValidationError(problem)
        return request

    InputProcessor.process_inputs = process_inputs  # type: ignore[method-assign]
    _count_by_what_is_kept(get_max_tokens)


def options_of(config: Any, key: str) -> dict[str, Any] | None:
    """The plug-in's options of an engine; None where it runs without the plug-in."""
    options = connector_options(config.kv_transfer_config).get(key)
    return None if options is None else dict(options)


def served_length(model: Any) -> int:
    """The engine's own ``max_model_len``, of its frontend's ModelConfig."""
    return int(getattr(model, SERVED, model.max_model_len))


def _widen_after_start(
    engine: type, key: str, scheduler: str, bound: Callable[[dict[str, Any]], int | None]
) -> None:
    start = engine.__init__  # type: ignore[misc]

    @functools.wraps(start)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        start(self, *args, **kwargs)  # which may still find a shorter length that fits
        config = self.vllm_config
        options = options_of(config, key)
        if options is None:
            return
        served = config.model_config.max_model_len
        longest = bound(options)
        named = config.scheduler_config.scheduler_cls
        if longest is not None and longest >= served and named == scheduler:
            _widen(self, longest + 1)
        shown = self.model_config.max_model_len
        _served[shown] = max(served, _served.get(shown, 0))

    engine.__init__ = __init__  # type: ignore[misc]


def _widen(engine: Any, length: int) -> None:
    """Give an engine's frontend a configuration of its own with this length."""
    model = copy.copy(engine.model_config)
    setattr(model, SERVED, model.max_model_len)
    model.max_model_len = length
    config = copy.copy(engine.vllm_config)
    config.model_config = model
    engine.model_config, engine.vllm_config = model, config
    for part in (engine.renderer, engine.input_processor):
        part.model_config = model
    for name in ("default_cmpl_tok_params", "default_chat_tok_params"):  # they are remembered
        vars(engine.renderer).pop(name, None)


def _count_by_what_is_kept(count: Callable[..., Any]) -> None:
    """An answer may have what the model's length leaves beside the tokens that are kept.

    How many these are is known when the prompt was looked at; the engine ends an answer there.
    """

    @functools.wraps(count)
    def get_max_tokens(
        max_model_len: int, max_tokens: int | None, input_length: int, *args: Any, **kwargs: Any
    ) -> Any:
        served = _served.get(max_model_len)
        if served is not None and input_length <= max_model_len:
            input_length = min(input_length, max_model_len - served)
        return count(max_model_len, max_tokens, input_length, *args, **kwargs)

    # Endpoints have taken it by its name. No attribute is asked for: some modules import on that.
    for module in [one for name, one in sys.modules.items() if name.startswith("vllm.")]:
        if vars(module).get("get_max_tokens") is count:
            vars(module)["get_max_tokens"] = get_max_tokens
