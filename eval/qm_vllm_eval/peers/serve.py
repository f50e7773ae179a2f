"""The worker's side of the JSON lines: reads requests, writes replies, lets nothing else out."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, TextIO

Handler = Callable[[dict[str, Any]], dict[str, Any]]


def protected_output() -> TextIO:
    """Keep standard output for replies: what libraries print from now on goes to stderr.

    Call it before importing them. Also covers prints of compiled code, which write to file
    descriptor 1.
    """
    sys.stdout.flush()
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return replies


def serve(handler: Handler, replies: TextIO, requests: TextIO | None = None) -> None:
    """Answer requests until the input ends.

    Args:
        handler: makes a reply of a request. Where it raises, the reply is
            ``{"error": "Type: message"}`` and the traceback goes to stderr.
        replies: of :func:`protected_output`.
        requests: default standard input.
    """
    for line in requests or sys.stdin:
        try:
            request = json.loads(line)
            if not isinstance(request, dict):
                raise TypeError("a request must be a JSON object")
            reply = handler(request)
        except Exception as error:
            traceback.print_exc()
            reply = {"error": describe(error)}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def describe(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
