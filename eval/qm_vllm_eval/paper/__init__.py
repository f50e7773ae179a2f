"""The paper's tables and claims, measured (docs/paper.md)."""
