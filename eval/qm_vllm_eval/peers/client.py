"""Talks to a worker process by JSON lines: one request, one reply."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from qm_vllm_eval.peers.environment import peer_python

STDERR_LINES = 30
CLOSE_SECONDS = 10.0


class PeerFailed(RuntimeError):
    """A worker ended without an answer, or answered something else than a JSON object."""


class PeerClient:
    """One worker process, started with the first request and kept until :meth:`close`.

    After a crash the next request starts a new process. Not for use by several threads.

    Args:
        command: the program and its arguments; it reads requests from standard input and
            writes replies to standard output, see :mod:`qm_vllm_eval.peers.serve`.
        name: what error messages call it.
    """

    def __init__(self, command: Sequence[str | Path], name: str = "peer") -> None:
        self.command = [str(part) for part in command]
        self.name = name
        self._process: subprocess.Popen[str] | None = None
        self._stderr: deque[str] = deque(maxlen=STDERR_LINES)
        self._drain: threading.Thread | None = None

    def request(self, message: dict[str, Any]) -> dict[str, Any]:
        """Send one request and wait for its reply.

        A request that a worker of this package could not serve is answered with the reason
        under ``"error"``; the worker lives on.

        Raises:
            PeerFailed: with the last lines that the worker wrote to standard error.
        """
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(message) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:
            line = ""
        except BaseException:  # interrupted: its late reply must not answer the next request
            process.kill()
            self.close()
            raise
        if not line.endswith("\n"):
            raise self._failure(process, "ended without an answer")
        try:
            reply = json.loads(line)
        except ValueError:
            reply = None
        if not isinstance(reply, dict):
            process.kill()
            raise self._failure(process, f"answered something else than JSON: {line[:200]!r}")
        return reply

    def close(self) -> None:
        """End the worker: politely, then by signal. Any number of times."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(OSError):  # it may have gone already
            process.stdin.close()
        try:
            process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if self._drain is not None:
            self._drain.join(CLOSE_SECONDS)
        process.stdout.close()

    def __enter__(self) -> PeerClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _start(self) -> subprocess.Popen[str]:
        hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")  # they belong to this environment
        surroundings = {key: value for key, value in os.environ.items() if key not in hidden}
        # Without a network, a look-up by name would wait for its timeouts.
        surroundings |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._stderr.clear()
        try:
            process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                errors="replace",
                env=surroundings,
            )
        except OSError as error:
            raise PeerFailed(f"{self.name} does not start: {error}") from error
        assert process.stderr is not None
        self._drain = threading.Thread(target=self._collect, args=(process.stderr,), daemon=True)
        self._drain.start()
        self._process = process
        return process

    def _collect(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                self._stderr.append(line.rstrip("\n"))

    def _failure(self, process: subprocess.Popen[str], what: str) -> PeerFailed:
        self.close()
        said = "\n".join(self._stderr) or "(nothing)"
        return PeerFailed(
            f"{self.name} {what} (exit status {process.returncode}). "
            f"Its last lines on standard error:\n{said}"
        )


def kvpress_client(model: str | Path, dtype: str = "bfloat16", threads: int = 2) -> PeerClient:
    """A client of :mod:`qm_vllm_eval.peers.kvpress_worker`.

    Args:
        model: folder of a transformers model.
        dtype: the torch dtype to load it in.
        threads: of torch.

    Raises:
        PeerMissing: scripts/setup_peers.sh was not run.
    """
    return _client("kvpress", model, ["--dtype", dtype, "--threads", str(threads)])


def llmlingua_client(model: str | Path, threads: int = 2) -> PeerClient:
    """A client of :mod:`qm_vllm_eval.peers.llmlingua_worker`. As :func:`kvpress_client`."""
    return _client("llmlingua", model, ["--threads", str(threads)])


def _client(peer: str, model: str | Path, options: list[str]) -> PeerClient:
    module = f"qm_vllm_eval.peers.{peer}_worker"
    folder = str(Path(model).expanduser())
    command = [str(peer_python(peer)), "-m", module, "--model", folder, *options]
    return PeerClient(command, peer)
