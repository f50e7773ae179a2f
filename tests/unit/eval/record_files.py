"""Records as parquet, csv or jsonl files."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet


def write_records(file: Path, held: list[dict[str, Any]], **of_parquet: Any) -> Path:
    """Write by the file's ending; ``of_parquet`` goes to pyarrow's writer."""
    if file.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(held), file, **of_parquet)
    elif file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(record) + "\n" for record in held), encoding="utf-8")
    else:
        with file.open("w", encoding="utf-8", newline="") as lines:
            writer = csv.DictWriter(lines, list(held[0]))
            writer.writeheader()
            writer.writerows(held)
    return file
