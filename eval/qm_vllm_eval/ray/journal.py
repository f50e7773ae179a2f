"""The journal of a run: one line per finished unit, so that a killed run goes on where it was.

``journal.jsonl`` begins with a line that names the settings which decide a result. Each line
after it is one unit's row; only the driver writes, and a line is on the disk before the next
begins. A last line without its newline was cut off while it was written: it is dropped, and its
unit runs again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qm_vllm.texts import json_bytes
from qm_vllm_eval.ray.work import Key

FILE = "journal.jsonl"


class JournalError(RuntimeError):
    """The folder holds something else than an earlier part of this run."""


def settings_hash(settings: Mapping[str, Any]) -> str:
    """First 16 hex digits of a SHA-256 over the settings, whatever their order."""
    text = json.dumps(settings, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Journal:
    """Rows of finished units; open one for a run, and close it (or use ``with``).

    Args:
        folder: of the run; made if it is not there.
        settings: what decides a unit's result.
        retry_failed: run units again that have failed.

    Raises:
        JournalError: the folder's journal is of other settings, damaged, or in use by another
            process.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], *, retry_failed: bool = False
    ) -> None:
        self.path = folder / FILE
        self.done: set[Key] = set()
        folder.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a+b")
        try:
            _lock(self._file, self.path)
            self._repair()
            self._open(json.loads(json.dumps(settings, default=str)))
            for row in self.rows():
                if not (retry_failed and row["status"] == "failed"):
                    self.done.add((row["row_id"], row["ratio"]))
        except BaseException:
            self._file.close()
            raise

    def add(self, row: Mapping[str, Any]) -> None:
        """Write a row with ``row_id``, ``ratio`` and ``status``; it is on the disk afterwards."""
        self._write(row)
        self.done.add((row["row_id"], row["ratio"]))

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows in the order in which they ended, later ones of the same unit included."""
        with self.path.open("rb") as lines:
            next(lines, None)
            for number, line in enumerate(lines, 2):
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise JournalError(
                        f"line {number} of {self.path} is damaged ({error}); remove that line"
                    ) from error

    def table(self) -> list[dict[str, Any]]:
        """The last row of each unit, by row id and ratio."""
        last = {(row["row_id"], row["ratio"]): row for row in self.rows()}
        return [last[key] for key in sorted(last)]

    def close(self) -> None:
        """Let another process have the journal."""
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, value: Mapping[str, Any]) -> None:
        self._file.write(json_bytes(json.dumps(value, ensure_ascii=False) + "\n"))
        self._file.flush()
        os.fsync(self._file.fileno())

    def _repair(self) -> None:
        whole = 0
        with self.path.open("rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    self._file.truncate(whole)
                whole += len(line)

    def _open(self, settings: dict[str, Any]) -> None:
        with self.path.open("rb") as lines:
            first = next(lines, b"")
        digest = settings_hash(settings)
        if not first:
            self._write({"journal": 1, "hash": digest, "settings": settings})
            return
        try:
            head = json.loads(first)
            known, held = head["hash"], head["settings"]
        except (ValueError, KeyError, TypeError) as error:
            raise JournalError(f"{self.path} is no journal of this command; name another --out") \
                from error
        if known != digest:
            names = sorted(set(held) | set(settings))
            other = [name for name in names if held.get(name) != settings.get(name)]
            raise JournalError(
                f"{self.path.parent} holds a run with other settings ({', '.join(other)}); name "
                "another --out, or run with the same settings to go on"
            )


def _lock(file: Any, path: Path) -> None:
    """One process at a time; the lock ends with its process, however that ends."""
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise JournalError(f"another process writes {path}; wait for it or end it") from error
