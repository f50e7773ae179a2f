"""What ``qm-vllm tune`` says: the table of ratios, the promise, and how it fared."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from qm_vllm_eval.own.prompts import OwnPrompt
from qm_vllm_eval.study.tune import Measured, Point

FEW = 30
"""With fewer prompts an interval by resampling is too narrow to rely on."""
MIB = 1 << 20


def table(measured: Measured, max_loss: float, chosen: Point | None) -> Table:
    """One line for each ratio, the full prompt and no context."""
    shown = Table(
        "ratio", "kept tokens", "quality", "loss (95 % interval)", "retention",
        "KV saved per prompt", f"within {max_loss:g}",
    )
    ends, last = measured.ends, measured.points[-1]
    shown.add_row("no context", "", f"{ends.none:.3f}", f"{ends.full - ends.none:.3f}", "0", "", "")
    for point in measured.points:
        mark = " *" if point is chosen else ""
        if not point.prompts:
            shown.add_row(f"{point.ratio:g}", "", "", "no prompt worked", "", "", "no")
            continue
        saved = point.full_kv_bytes - point.kv_bytes
        shown.add_row(
            f"{point.ratio:g}{mark}", f"{point.kept_tokens:,.0f} of {point.tokens:,.0f}",
            f"{point.quality:.3f}", loss_of(point), f"{point.retention:.2f}",
            f"{saved / MIB:.2f} MiB ({saved / point.full_kv_bytes:.0%})", _verdict(point, max_loss),
        )
    shown.add_row(
        "full prompt", f"{last.tokens:,.0f}", f"{ends.full:.3f}", "0", "1", "0", "",
    )
    return shown


def loss_of(point: Point) -> str:
    """Mean loss with its interval."""
    return f"{point.loss:.4f} [{point.low:.4f}, {point.high:.4f}]"


def promise(chosen: Point | None, measured: Measured, max_loss: float) -> str:
    """What was chosen and what that promises."""
    points = measured.points
    if chosen is None:
        top = points[-1]
        if top.failed or not top.prompts:
            why = f"at {top.ratio:g} {top.failed or 'all'} prompts failed"
        else:
            why = f"even at {top.ratio:g} it may reach {top.high:.4f}"
        return f"No ratio that was tried keeps the loss within {max_loss:g}: {why}."
    said = (
        f"Ratio {chosen.ratio:g} is the smallest that keeps the mean loss within {max_loss:g} by "
        f"the upper end of its interval ({chosen.high:.4f}, {chosen.prompts} prompts), and so do "
        "all larger ones. So the mean loss on other prompts of the same kind should be within "
        f"{max_loss:g}: at most about one such promise in forty is broken by chance."
    )
    if chosen is points[0] and len(points) > 1:
        said += " No smaller ratio was tried (--ratios)."
    return said


def check(held: Point, max_loss: float) -> tuple[str, bool]:
    """What held-out prompts say of the promise, and whether it was kept on them."""
    if not held.prompts or held.failed:
        return f"Held out: {held.failed or 'all'} prompts failed at this ratio.", False
    kept = held.loss <= max_loss
    if held.high <= max_loss:
        verdict = "kept, with the whole interval"
    elif kept:
        verdict = "kept in the mean; so few prompts do not show more"
    else:
        verdict = "NOT kept"
    said = (
        f"Held out, {held.prompts} prompts that nothing was chosen on: quality "
        f"{held.quality:.3f}, loss {loss_of(held)}, {held.kept_tokens:,.0f} of {held.tokens:,.0f} "
        f"tokens kept. The promise was {verdict}."
    )
    return said, kept


def quality_means(prompts: Sequence[OwnPrompt]) -> str:
    """What quality is on these prompts."""
    own = sum(prompt.is_own for prompt in prompts)
    kinds = []
    if own < len(prompts):
        kinds.append(f"F1 with the answers of the file ({len(prompts) - own} prompts)")
    if own:
        kinds.append(
            "the share of the model's own answer to the full prompt whose tokens stay its first "
            f"choice ({own} prompts)"
        )
    return f"Quality is {', or '.join(kinds)}."


def doubts(measured: Measured, max_loss: float) -> list[str]:
    """Reasons to believe the figures less."""
    found, ends = [], measured.ends
    if ends.prompts < FEW:
        found.append(
            f"Only {ends.prompts} prompts were tuned on: with fewer than {FEW} an interval is "
            "narrower than it should be."
        )
    if not ends.benefit_low > max_loss:
        found.append(
            f"Without any context quality is {ends.none:.3f}, in full it is {ends.full:.3f}: a "
            "measure that misses the context this little cannot see what compression loses."
        )
    return found


def _verdict(point: Point, max_loss: float) -> str:
    if point.failed:
        return f"no, {point.failed} failed"
    return "yes" if point.keeps(max_loss) else "no"
