"""Named settings, each a few lines; everything else is the default."""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    # A document that is compressed once and asked about later: nothing of a question is known,
    # so twice as much stays as where it is.
    "cache": {"query_visible": False, "ratio": 0.5},
}
"""Options by name of the preset, for ``QuickMergeConfig.preset`` and the request option."""
