"""One request of a load, and when two of them must have one answer."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"


@dataclass(frozen=True)
class Ask:
    """One HTTP request.

    Attributes:
        greedy: its answer is determined, so it can be compared. bad: it deserves a 4xx.
        headers: beside the usual ones. kind: what it is counted as.
    """

    path: str
    body: dict[str, Any]
    greedy: bool = True
    bad: bool = False
    headers: dict[str, str] = field(default_factory=dict)
    kind: str = "plain"

    @property
    def key(self) -> str:
        """Equal for requests that must have equal answers."""
        different = {"stream", "cache_salt", "request_id"}
        if self.body.get("tool_choice", "none") != "none":
            # vLLM reads a call that max_tokens cuts otherwise in a stream than in one piece.
            different.remove("stream")
        return json.dumps([self.path, {k: v for k, v in self.body.items() if k not in different}])

    @property
    def hinted(self) -> bool:
        """Whether a hint comes with it."""
        given = (self.body.get("kv_transfer_params") or {}).get("quickmerge") or {}
        return "hint" in given or "qm_hint" in (self.body.get("vllm_xargs") or {})
