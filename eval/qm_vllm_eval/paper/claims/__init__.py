"""The paper's claims, each checked by numbers: one file a family, :mod:`.run` does all of them.

Every check is a function of given states that returns a small dataclass of figures with a field
``holds``. docs/paper.md says what came out.
"""
