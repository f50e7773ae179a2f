"""``qm-vllm serve`` as a process of its own, with what can be seen of it from outside."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path
from types import TracebackType


class ServerEnded(RuntimeError):
    """The server's process is gone; the message holds the end of its log."""


class RemoteServer:
    """A server somewhere, seen over HTTP."""

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")

    def alive(self) -> bool:
        """Whether it answers and its engine lives."""
        try:
            with urllib.request.urlopen(self.address + "/health", timeout=10) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def num_blocks(self) -> int:
        """Blocks of its KV cache, as vLLM reports them (0: it does not)."""
        found = re.search(r'cache_config_info\{.*num_gpu_blocks="(\d+)"', self._scrape())
        return int(found[1]) if found else 0

    def _scrape(self) -> str:
        with urllib.request.urlopen(self.address + "/metrics", timeout=60) as answer:
            text: str = answer.read().decode()
        return text

    def metrics(self) -> Counter[str]:
        """Prometheus metrics by name, summed over their labels."""
        found: Counter[str] = Counter()
        for line in self._scrape().splitlines():
            if not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                found[name.partition("{")[0]] += float(value)  # type: ignore[assignment]
        return found

    def by_labels(self, metric: str) -> list[float]:
        """A metric's values, one for each set of labels, such as those of each engine."""
        return [
            float(line.rpartition(" ")[2]) for line in self._scrape().splitlines()
            if line.partition("{")[0] == metric
        ]

    def reset_caches(self) -> None:
        """Forget cached blocks and remembered compressions (needs ``development``)."""
        request = urllib.request.Request(
            self.address + "/reset_prefix_cache?reset_external=true", method="POST"
        )
        urllib.request.urlopen(request, timeout=60).close()

    def ask(self, path: str, body: dict[str, object]) -> dict[str, object]:
        """One request and its answer, one after the other."""
        request = urllib.request.Request(
            self.address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=600) as answer:
            content: dict[str, object] = json.load(answer)
        return content

    def memory_mib(self) -> float:
        """Not to be seen from outside: 0."""
        return 0.0


class Server(RemoteServer):
    """A server that lives as long as the ``with`` block.

    Args:
        arguments: of ``qm-vllm serve``: the model and flags.
        log: where its output goes.
        wait_s: seconds until it has to answer.
        development: switch on vLLM's endpoints for tests (cache reset).
        program: module that is run; :mod:`qm_vllm_eval.serving.forced_async` is another.

    Raises:
        ServerEnded: it ended before it answered. TimeoutError: it did not answer in time.
    """

    def __init__(
        self, arguments: list[str], log: Path, *, wait_s: float = 300, development: bool = False,
        program: str = "qm_vllm.cli.main",
    ) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        super().__init__(f"http://127.0.0.1:{port}")
        self.log = log
        command = [sys.executable, "-m", program, "serve", *arguments]
        environment = {"VLLM_CPU_KVCACHE_SPACE": "1", **os.environ}
        if development:
            environment["VLLM_SERVER_DEV_MODE"] = "1"
        with log.open("a") as file:
            self.process = subprocess.Popen(
                [*command, "--host", "127.0.0.1", "--port", str(port)],
                stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True,
            )
        try:
            self._wait(wait_s)
        except BaseException:
            self.close()
            raise

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self.alive():
            if self.process.poll() is not None:
                raise ServerEnded("the server ended:\n" + self.tail())
            if time.monotonic() > deadline:
                raise TimeoutError(f"no answer in {seconds:.0f} s:\n{self.tail()}")
            time.sleep(0.5)

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End it and all its children."""
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)

    def tail(self, characters: int = 3000) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-characters:]

    def alive(self) -> bool:
        """Whether its process lives and it answers."""
        return self.process.poll() is None and super().alive()

    def processes(self) -> dict[int, str]:
        """Id and name of the server and its children (Linux)."""
        parents: dict[int, tuple[int, str]] = {}
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                with contextlib.suppress(OSError):
                    name, _, rest = (folder / "stat").read_text().partition("(")[2].rpartition(")")
                    parents[int(folder.name)] = (int(rest.split()[1]), name)
        found, grew = {self.process.pid}, True
        while grew:
            more = {pid for pid, (parent, _) in parents.items() if parent in found} - found
            found, grew = found | more, bool(more)
        return {pid: parents[pid][1] for pid in sorted(found) if pid in parents}

    def memory_mib(self) -> float:
        """Resident memory of the server and its children."""
        pages = 0
        for pid in self.processes():
            with contextlib.suppress(OSError):
                pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def kill_engine(self) -> int:
        """``kill -9`` the engine's process. Returns its id.

        Raises:
            RuntimeError: there is none of that name.
        """
        for pid, name in self.processes().items():
            if "EngineCor" in name:
                os.kill(pid, signal.SIGKILL)
                return pid
        raise RuntimeError(f"no engine process among {self.processes()}")
