"""An engine in a process of its own, so that engines do not meet and leave nothing behind."""

from __future__ import annotations

import contextlib
import multiprocessing
import traceback
from collections.abc import Callable
from typing import Any


class Child:
    """A process with an engine; ``make(*arguments)`` there returns what answers :meth:`ask`.

    The process starts at once; :meth:`ready` waits for it, so that several can start together.
    """

    def __init__(self, make: Callable[..., Callable[..., Any]], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, end = context.Pipe()
        self._process = context.Process(target=_serve, args=(end, make, arguments), daemon=True)
        self._process.start()
        end.close()  # ours is closed: if the child dies, recv says so instead of waiting

    def ready(self) -> Any:
        """What the engine says of itself, once it runs.

        Raises:
            RuntimeError: it did not start; the message ends with its traceback.
        """
        return self._answer()

    def ask(self, *message: Any) -> Any:
        """The answer to one message.

        Raises:
            RuntimeError: the child failed or died; the message ends with its traceback.
        """
        self._pipe.send(message)
        return self._answer()

    def stop(self) -> None:
        """Let it end, and make sure that it does."""
        with contextlib.suppress(OSError):  # it may have ended already
            self._pipe.send(None)
        self._process.join(30)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _answer(self) -> Any:
        try:
            failed, answer = self._pipe.recv()
        except EOFError:
            raise RuntimeError("the engine's process ended without an answer") from None
        if failed:
            raise RuntimeError(f"the engine's process failed:\n{answer}")
        return answer


def _serve(pipe: Any, make: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        answer = make(*arguments)
        pipe.send((False, getattr(answer, "facts", None)))
        while (message := pipe.recv()) is not None:
            pipe.send((False, answer(*message)))
    except EOFError:
        pass  # the parent has gone
    except Exception:
        pipe.send((True, traceback.format_exc()))
