"""Options of one request: how they are written into a request and read from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qm_vllm.config import OPTIONS, ConfigError, QuickMergeConfig

PREFIX = "qm_"
"""Of an option's name among a request's other scalars."""
MOST_CHARACTERS = 1 << 16
"""Of one option that travels as text."""


def request_args(**values: Any) -> dict[str, Any]:
    """Per-request options for ``SamplingParams(extra_args=...)`` or HTTP ``vllm_xargs``.

    >>> request_args(ratio=0.3)
    {'qm_ratio': 0.3}

    Raises:
        ConfigError: a name is unknown or fixed at engine start, or a value impossible.
    """
    checked = QuickMergeConfig().override(values)
    return {
        f"{PREFIX}{name}": OPTIONS[name].as_text(getattr(checked, name))
        if name in OPTIONS else value
        for name, value in values.items()
    }


def parse_request_args(extra_args: Mapping[str, Any] | None) -> dict[str, Any]:
    """Collect ``qm_*`` scalars and ``kv_transfer_params["quickmerge"]`` of one request.

    Returns the raw values by field name; :meth:`QuickMergeConfig.override` validates them.
    """
    extra_args = extra_args or {}
    values: dict[str, Any] = {}
    transfer = extra_args.get("kv_transfer_params")
    if isinstance(transfer, Mapping) and isinstance(transfer.get("quickmerge"), Mapping):
        values.update(transfer["quickmerge"])
    for name, value in extra_args.items():
        if not name.startswith(PREFIX):
            continue
        if isinstance(value, str) and len(value) > MOST_CHARACTERS:
            raise ConfigError(
                f"{name} has {len(value)} characters; at most {MOST_CHARACTERS} are allowed"
            )
        field = name.removeprefix(PREFIX)
        values[field] = OPTIONS[field].from_text(name, value) if field in OPTIONS else value
    return values


def check_ranges(
    ranges: tuple[tuple[int, int], ...], num_tokens: int, cut_to: int | None = None
) -> None:
    """Raise ConfigError if one of a request's protect_ranges leaves its prompt.

    Args:
        cut_to: what ``truncate_prompt_tokens`` leaves of a prompt at most.
    """
    most, why = num_tokens, f"the prompt has {num_tokens} tokens"
    if cut_to is not None and cut_to <= num_tokens:
        most, why = cut_to, f"truncate_prompt_tokens cuts the prompt to {cut_to} tokens"
    for start, stop in ranges:
        if stop > most:
            raise ConfigError(f"protect_ranges has ({start}, {stop}), but {why}")
