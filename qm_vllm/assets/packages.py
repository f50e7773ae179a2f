"""Files inside installed packages."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path


def in_package(package: str, *parts: str) -> Path | None:
    """A file or folder inside an installed package, found without importing it; None if absent."""
    spec = find_spec(package)
    for place in (spec.submodule_search_locations or []) if spec else []:
        path = Path(place).joinpath(*parts)
        if path.exists():
            return path
    return None
