"""The paper's own tables, by arithmetic: no model, no data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sum:
    """One figure of the paper beside the one that its other figures give.

    Attributes:
        what: which figure, and from what it is computed here.
        printed: the paper's.
        computed: ours.
        agrees: both are equal within the paper's rounding.
    """

    what: str
    printed: float
    computed: float
    agrees: bool


def kv_megabytes(
    tokens: float, *, layers: int = 6, width: int = 512, batch: int = 32, value_bytes: int = 2
) -> float:
    """Keys and values of a decoder, in MB (10^6 bytes)."""
    return 2 * layers * width * tokens * batch * value_bytes / 1e6


def change(before: float, after: float) -> float:
    """Relative change in per cent."""
    return 100 * (after / before - 1)


def check_tables() -> list[Sum]:
    """All sums of docs/paper.md, "The paper's own tables, by arithmetic"."""
    longest = max(4096 / 1682, 2048 / 821)
    return [
        _sum("Table 3, KV of the baseline in MB: 6 layers x 512 x 128 tokens x batch 32, fp16",
             1120, kv_megabytes(128), 1),
        _sum("Table 3, KV with QuickMerge++ in MB: 54 tokens", 412, kv_megabytes(54), 1),
        _sum("Table 3, tokens that fit the baseline's KV of 1120 MB", 128,
             128 * 1120 / kv_megabytes(128), 1),
        _sum("Table 3, change of KV in %, 1120 to 412", -63.2, change(1120, 412), 0.06),
        _sum("Table 3, change of tokens in %, 128 to 54", -57.8, change(128, 54), 0.06),
        _sum("Table 3, change of KV in %, as the tokens say (KV is proportional to tokens)",
             -63.2, change(128, 54), 0.06),
        _sum("Table 3, change of latency in %, 6.3 to 4.1", -34.9, change(6.3, 4.1), 0.06),
        _sum("Table 3, change of latency in %, if the 1.6 ms come on top", -34.9,
             change(6.3, 4.1 + 1.6), 0.06),
        _sum("Table 1, compression from Table 3's tokens", 2.37, 128 / 54, 0.006),
        _sum("4.2, 'up to 4.3 %': PPL against the best other row, in %", 4.3,
             -change(17.9, 17.1), 0.06),
        _sum("4.2, 'up to 4.3 %': accuracy against the best other row, in %", 4.3,
             change(77.0, 78.1), 0.06),
        _sum("4.2, 'up to 4.3 %': FVD against the best other row, in %", 4.3,
             -change(89.7, 85.6), 0.06),
        _sum("4.2, 'up to 4.3 %': accuracy against fixed patches, in %", 4.3,
             change(76.2, 78.1), 0.06),
        _sum("1, 'up to 3x': the highest compression of any table", 3.0, longest, 0.05),
        _sum("4.5, '2.4-2.7x': the highest of Table 4", 2.7, longest, 0.05),
        _sum("4.6, '2.0-2.5x': the lowest of Table 5", 2.0, 1.92, 0.05),
        _sum("Table 4, change of BookSum's tokens in %", -58.9, change(4096, 1682), 0.06),
        _sum("Table 4, change of Ego4D-NLQ's tokens in %", -59.9, change(2048, 821), 0.06),
        _sum("4.2, 'longer sequences yield higher savings': 4096 tokens against 2048, N / K",
             2048 / 821, 4096 / 1682, 0.0),
        _sum("Appendix, |G|^2 at 2.37x against Table 3's latency, times", 2.37**2, 6.3 / 4.1, 0.1),
    ]


def _sum(what: str, printed: float, computed: float, within: float) -> Sum:
    return Sum(what, printed, computed, abs(printed - computed) <= within)
