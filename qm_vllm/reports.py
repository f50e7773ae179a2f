"""Where a client finds the plug-in's report on a finished request."""

from __future__ import annotations

from typing import Any

from qm_vllm.errors import UserError

REPORT_KEY = "quickmerge"
"""In ``RequestOutput.kv_transfer_params``, and of the engine's options."""
REFUSED = "refused"
"""Status of a request that could not be served: its prompt is longer than vLLM can read."""


def report_of(output: Any) -> dict[str, Any]:
    """The plug-in's report on one finished ``RequestOutput``.

    Raises:
        UserError: the request carries none, so the plug-in was not active.
    """
    params = getattr(output, "kv_transfer_params", None) or {}
    report = params.get(REPORT_KEY)
    if not isinstance(report, dict):
        raise UserError(
            "the engine returned no quickmerge report, so the plug-in is not active; "
            "run `qm-vllm doctor` to see which hook is missing"
        )
    return report
