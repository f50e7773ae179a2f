"""Mistakes of the user's, told in one sentence."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can change; the message is a sentence that says what."""
