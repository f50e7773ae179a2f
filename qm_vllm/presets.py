"""Named settings, each a few lines; everything else is the default."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

from qm_vllm.option_checks import choice
from qm_vllm.options import Form, Option, Setter

PRESETS: dict[str, dict[str, Any]] = {
    # Several questions on one document, a request each: vLLM prefills the prompt, so the next one
    # finds the document in its prefix cache, and what each keeps is chosen for its own question.
    "cache": {"delivery": "native"},
}
"""Options by name of the preset, for ``QuickMergeConfig.preset`` and the request option."""

PRESET = Option(
    name="preset", default=None, check=partial(choice, allowed=tuple(PRESETS)),
    help=f"Settings by name, under the others: {', '.join(PRESETS)}", by=Setter.REQUEST,
    form=Form.SCALAR, changes_result=True, shown=None, flags=None,
)
"""Not a field of the configuration: requests and commands name it, and it stands for fields."""


def with_preset(
    name: Any, changes: Mapping[str, Any], budget: Collection[str]
) -> dict[str, Any]:
    """Options of a preset, without its budget where the changes bring one, and the changes.

    Args:
        budget: names of the budget options.

    Raises:
        ConfigError: there is no such preset.
    """
    preset = PRESETS[PRESET.check(PRESET.name, name)]
    other = any(field in changes for field in budget)
    return {k: v for k, v in preset.items() if not (other and k in budget)} | dict(changes)
