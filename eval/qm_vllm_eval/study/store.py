"""Where a study keeps its rows: a folder that a stopped run continues in.

    run_meta.json          what was measured with what; its "configuration" never changes
    predictions.parquet    rows that were merged by compact()
    predictions/part-*     rows since then, one file per add()
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from qm_vllm_eval.row import OK, Row
from qm_vllm_eval.study.meta import now

META = "run_meta.json"
MERGED = "predictions.parquet"
PARTS = "predictions"
PERMANENT = ("not applicable",)
"""How the status of a row begins that would fail again in every run of the same code. A package
that is missing is not among them: it may be installed before the next run."""

KEY = ["sample_id", "method", "ratio"]
ORDER = ["task", "length", "query_visible", "index", "sample_id", "method", "ratio"]
_TYPES = {"str": pa.string(), "bool": pa.bool_(), "int": pa.int64(), "float": pa.float64()}
SCHEMA = pa.schema([(field.name, _TYPES[str(field.type)]) for field in fields(Row)])

log = logging.getLogger(__name__)


class StoreError(Exception):
    """The folder holds no study, or one that these rows do not belong to; a sentence."""


class Store:
    """Rows of one study in one folder.

    Attributes:
        folder: where they are.
        broken: names of the files that the last reading could not read and skipped.
    """

    def __init__(self, folder: str | Path) -> None:
        """Look at a study that exists, without checking what it was measured with.

        Raises:
            StoreError: the folder holds no readable run_meta.json.
        """
        self.folder = Path(folder)
        self.broken: list[str] = []
        self._meta = self._read_meta()
        self._about: dict[str, tuple[Any, ...]] | None = None

    @classmethod
    def open(
        cls,
        folder: str | Path,
        settings: Mapping[str, Any],
        run: Mapping[str, Any] | None = None,
    ) -> Store:
        """Create a study, or continue the one in the folder.

        Args:
            settings: the configuration, JSON values, possibly nested: what must be equal for all
                rows of a folder. The grid (tasks, methods, ratios, lengths, samples) is no part
                of it and may grow.
            run: what :func:`qm_vllm_eval.study.meta.describe_run` says about this run; it is
                added to the list "runs" of run_meta.json.

        Raises:
            StoreError: the folder's configuration differs; the message names each field that
                does, with both values. Or its run_meta.json cannot be read, or rows lie there
                without one.
        """
        folder = Path(folder)
        wanted = json.loads(json.dumps(settings))
        if (folder / META).exists():
            store = cls(folder)
            store._compare(wanted)
        else:
            if (folder / MERGED).exists() or any((folder / PARTS).glob("part-*.parquet")):
                raise StoreError(
                    f"{folder} holds rows but no {META}, so nobody can tell what they were "
                    "measured with; choose another folder"
                )
            folder.mkdir(parents=True, exist_ok=True)
            _write_json(folder / META, {"format": 1, "configuration": wanted, "runs": []})
            store = cls(folder)
        (folder / PARTS).mkdir(exist_ok=True)
        if run is not None:
            store._meta["runs"].append(json.loads(json.dumps(run)))
            store._save_meta()
        return store

    @property
    def meta(self) -> dict[str, Any]:
        """What run_meta.json says: "configuration", and "runs", the newest last."""
        return self._meta

    def finish(self, learned: Mapping[str, Mapping[str, str]] | None = None) -> None:
        """Merge the parts, and note the time (UTC) at which this run ended.

        Args:
            learned: what became known during the run, by part of the run's description:
                ``{"methods": {name: settings}, "versions": {package: version}}``.
        """
        self.compact()
        if not self._meta["runs"]:
            return
        mine, self._meta = self._meta["runs"][-1], self._read_meta()  # others may run beside us
        for run in self._meta["runs"]:
            if run == mine:
                run["ended"] = now()
                for part, values in (learned or {}).items():
                    run.setdefault(part, {}).update(values)
        self._save_meta()

    def add(self, rows: Sequence[Row]) -> None:
        """Write rows to a file of their own; after a crash it is there as a whole or not at all.

        Raises:
            StoreError: a sample id stands for another task, length or query mode already.
        """
        if not rows:
            return
        self._check_ids(rows)
        table = pa.Table.from_pylist([asdict(row) for row in rows], schema=SCHEMA)
        parts = self.folder / PARTS
        parts.mkdir(exist_ok=True)
        number = 1 + max((_number(path) for path in self._parts()), default=0)
        name = f"part-{number:08d}-{secrets.token_hex(3)}.parquet"
        _write_table(table, parts / name)

    def done(self) -> set[tuple[str, str, float]]:
        """(sample_id, method, ratio) of what need not be measured again.

        These are the rows that worked and those whose status begins as :data:`PERMANENT` says.
        All others are retried; the newest row of a key is the one that counts.
        """
        rows = self.rows()
        settled = (rows["status"] == OK) | rows["status"].str.startswith(PERMANENT)
        keys = rows.loc[settled, KEY]
        return {
            (str(sample), str(method), float(ratio))
            for sample, method, ratio in keys.itertuples(index=False)
        }

    def rows(self) -> pd.DataFrame:
        """All rows, one per (sample_id, method, ratio), the newest; columns as in ``Row``."""
        tables = [table for _, table in self._read()]
        frame = pa.concat_tables([SCHEMA.empty_table(), *tables]).to_pandas()
        frame = frame.drop_duplicates(KEY, keep="last")
        return frame.sort_values(ORDER, kind="stable", ignore_index=True)

    def compact(self) -> Path:
        """Merge all readable parts into predictions.parquet. Returns its path.

        Files that cannot be read are kept: a part under its name, a broken predictions.parquet
        with ".broken" behind it.
        """
        read = list(self._read())
        target = self.folder / MERGED
        frame = self.rows()
        if MERGED in self.broken:
            os.replace(target, target.with_name(f"{MERGED}.{secrets.token_hex(3)}.broken"))
        _write_table(pa.Table.from_pandas(frame, schema=SCHEMA, preserve_index=False), target)
        # Oldest first: if this is cut off, the parts that stay are the newest and still win.
        for path, _ in read:
            if path != target:
                path.unlink(missing_ok=True)
        return target

    def _parts(self) -> list[Path]:
        return sorted((self.folder / PARTS).glob("part-*.parquet"))

    def _read(self) -> Iterator[tuple[Path, pa.Table]]:
        """The readable files, oldest first; ``broken`` lists the others afterwards."""
        self.broken = []
        merged = self.folder / MERGED
        for path in [*([merged] if merged.exists() else []), *self._parts()]:
            try:
                table = pq.read_table(path, schema=SCHEMA)
            except (pa.ArrowException, OSError, ValueError) as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                log.warning("%s is skipped, it cannot be read: %s", path.name, reason)
                self.broken.append(path.name)
                continue
            yield path, table

    def _check_ids(self, rows: Sequence[Row]) -> None:
        names = ("task", "length", "query_visible")
        if self._about is None:
            known = self.rows().drop_duplicates("sample_id")
            self._about = {
                str(sample): about
                for sample, *rest in known[["sample_id", *names]].itertuples(index=False)
                if (about := tuple(rest))
            }
        for row in rows:
            about = (row.task, row.length, row.query_visible)
            if self._about.setdefault(row.sample_id, about) != about:
                raise StoreError(
                    f"sample id {row.sample_id!r} stands for {self._about[row.sample_id]} "
                    f"(task, length, query visible) and now for {about}; ids must be unique"
                )

    def _compare(self, wanted: Mapping[str, Any]) -> None:
        have, want = _flat(self._meta["configuration"]), _flat(wanted)
        differ = [
            f"{name}: {have.get(name, 'not given')!r} there, {want.get(name, 'not given')!r} now"
            for name in sorted(have.keys() | want.keys())
            if have.get(name, _flat) != want.get(name, _flat)
        ]
        if differ:
            raise StoreError(
                f"{self.folder} holds rows of another configuration, and rows are never mixed "
                f"({'; '.join(differ)}); choose another folder or the settings of this one"
            )

    def _read_meta(self) -> dict[str, Any]:
        path = self.folder / META
        try:
            meta = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise StoreError(f"{self.folder} holds no study: there is no {META}") from None
        except (OSError, ValueError) as error:
            raise StoreError(f"{path} cannot be read: {error}") from None
        if not isinstance(meta, dict) or not isinstance(meta.get("configuration"), dict):
            raise StoreError(f"{path} holds no configuration")
        meta.setdefault("runs", [])
        return meta

    def _save_meta(self) -> None:
        _write_json(self.folder / META, self._meta)


def _number(path: Path) -> int:
    found = re.match(r"part-(\d+)", path.name)
    return int(found.group(1)) if found else 0


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one level, names joined by dots."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _write_table(table: pa.Table, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(3)}.tmp")
    try:
        pq.write_table(table, temporary, compression="zstd")
        _sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(3)}.tmp")
    try:
        text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
        temporary.write_text(text, encoding="utf-8")
        _sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
