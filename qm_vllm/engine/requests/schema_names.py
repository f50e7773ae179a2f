"""The hint of a request that has none: the names of the fields that its answer must fill.

A prompt that is to become a form often does not name the form's fields: the JSON schema does, which
the model does not read. So the end of the prompt, which says what stays, cannot look for them
(``scripts/agent_policy.py`` measures what that costs).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from qm_vllm.config import QuickMergeConfig
from qm_vllm.engine.facts import EngineFacts
from qm_vllm.option_checks import MOST_HINT

DEEPEST = 16
"""Levels of a schema that are looked at: schemas may hold themselves."""
MOST_PARTS = 4096
"""Parts of it that are looked at: one that holds itself ten times has 10^16 of them."""
MOST_NAMES = 256
PARTS = ("items", "additionalProperties", "contains")
CHOICES = ("prefixItems", "anyOf", "oneOf", "allOf")


def resolve_hint(
    config: QuickMergeConfig, schema: str | dict[str, Any] | None, facts: EngineFacts
) -> QuickMergeConfig:
    """The configuration with what ``hint="auto"`` means for a request.

    That is the names in its schema where there is one, the prompt's end may look, too, and the
    score looks at all; else nothing.

    Args:
        config: whose delivery is known. schema: of the answer, as the client gave it.
    """
    if config.hint != "auto":
        return config
    looks = config.query_visible and config.effective_saliency == "query"
    layers = facts.has_adapter or config.delivery == "native"
    if schema is None or not (looks and layers) or facts.hints.problem:
        return replace(config, hint="")
    return replace(config, hint=field_names(schema))


def field_names(schema: str | dict[str, Any]) -> str:
    """Names of a JSON schema's fields in their order, those of objects before their own fields.

    "company name, seat town, code" is a company with a name and a seat, which has two. At most
    1,024 characters, the last ones; "" of what is no schema of fields.
    """
    try:
        root = json.loads(schema) if isinstance(schema, str) else schema
    except (ValueError, RecursionError):
        return ""
    names = _names(root, root, DEEPEST, iter(range(MOST_PARTS)))
    return ", ".join(islice(names, MOST_NAMES))[-MOST_HINT:]


def _names(part: Any, root: Any, levels: int, parts: Iterator[int]) -> Iterator[str]:
    """Names in one part; ``parts`` gives something for each that may still be looked at."""
    part = _referred(part, root)
    if not isinstance(part, dict) or not levels or next(parts, None) is None:
        return
    fields = part.get("properties")
    for name, field in fields.items() if isinstance(fields, dict) else ():
        before = f"{name} "
        for inner in _names(field, root, levels - 1, parts):
            yield before + inner
            before = ""
        if before:
            yield str(name)
    for key in PARTS:
        yield from _names(part.get(key), root, levels - 1, parts)
    for key in CHOICES:
        choices = part.get(key)
        for choice in choices if isinstance(choices, list) else ():
            yield from _names(choice, root, levels - 1, parts)


def _referred(part: Any, root: Any) -> Any:
    """What a part stands for: "#/$defs/Order" is in the schema itself; others are not followed."""
    for _ in range(DEEPEST):
        where = part.get("$ref") if isinstance(part, dict) else None
        if not isinstance(where, str) or not where.startswith("#/"):
            break
        part = root
        for key in where[2:].split("/"):
            part = part.get(key) if isinstance(part, dict) else None
    return part
