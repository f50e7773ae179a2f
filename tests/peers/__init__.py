"""Tests that run the real peer packages; not among the default test paths."""
