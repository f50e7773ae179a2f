"""One run of ``qm-vllm tune``: prompts, engine and method, and what is measured with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qm_vllm.errors import UserError
from qm_vllm_eval.engines.base import Engine
from qm_vllm_eval.methods import METHODS, Method
from qm_vllm_eval.methods.quickmerge import VARIANTS
from qm_vllm_eval.own.prompts import OwnPrompt, Reading, read_prompts, window_of
from qm_vllm_eval.study.progress import GridProgress
from qm_vllm_eval.study.session import ENGINES, skipped_lines, start_engine, tokenizer_of
from qm_vllm_eval.study.tune import Measured, divide, grid_of, measure

NATIVE = "native"


@dataclass(frozen=True)
class Wanted:
    """The command's options, parsed; ``fewest`` is min_tokens. See ``qm-vllm tune --help``."""

    data: Path
    model: str
    method: str
    ratios: tuple[float, ...]
    holdout: float
    seed: int
    chat: bool
    answer_tokens: int
    engine: str
    dtype: str
    block_size: int
    threads: int | None
    fewest: int


class OwnSession:
    """An engine with prompts to tune on and prompts held out.

    Attributes:
        options: of the configuration, that make the engine of a server do what is measured.
    """

    def __init__(
        self, wanted: Wanted, engine: Engine, method: Method, options: dict[str, Any],
        tuned: Sequence[OwnPrompt], held: Sequence[OwnPrompt], told: Callable[[str], object],
    ) -> None:
        self._wanted, self._engine, self._method, self._told = wanted, engine, method, told
        self.options, self.tuned, self.held = options, tuned, held

    def tune(self) -> Measured:
        """Every ratio on the prompts to tune on."""
        return self._measure(self.tuned, self._wanted.ratios)

    def check(self, ratio: float) -> Measured | None:
        """One ratio on the held-out prompts; None where there are none."""
        return self._measure(self.held, (ratio,)) if self.held else None

    def close(self) -> None:
        """End the engine."""
        self._engine.close()

    def _measure(self, prompts: Sequence[OwnPrompt], ratios: tuple[float, ...]) -> Measured:
        with GridProgress(grid_of(prompts, self._method, ratios).size()) as progress:
            measured = measure(
                self._engine, prompts, self._method, ratios, seed=self._wanted.seed,
                advanced=progress.advance,
            )
        if not measured.ends.prompts:
            raise UserError(
                "no prompt could be measured: "
                + "; ".join(skipped_lines(dict(list(measured.problems.items())[:3])))
            )
        for sentence in skipped_lines(measured.problems):
            self._told(sentence)
        return measured


def start(wanted: Wanted, told: Callable[[str], object]) -> OwnSession:
    """Read the prompts, then start the engine.

    Args:
        told: gets a sentence for each line that cannot be used.

    Raises:
        UserError: an argument names something that does not exist, the file has no usable prompt,
            or the model cannot be run.
    """
    if wanted.engine not in ENGINES:
        raise UserError(f"--engine {wanted.engine!r} is unknown; known: {', '.join(ENGINES)}")
    options = served_options(wanted.method, wanted.engine)
    reading = Reading(wanted.chat, wanted.answer_tokens, window_of(wanted.model), wanted.fewest)
    prompts, skipped = read_prompts(wanted.data, tokenizer_of(wanted.model), reading)
    for sentence in skipped_lines(skipped):
        told(sentence)
    if len(prompts) < 2:
        raise UserError("one prompt alone has no interval; give a file with more, 60 or so")
    tuned, held = divide(prompts, wanted.holdout, wanted.seed)
    try:
        engine = start_engine(
            wanted.engine, wanted.model, dtype=wanted.dtype, block_size=wanted.block_size,
            threads=wanted.threads, longest=max(one.tokens + one.reply for one in prompts),
        )
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error
    return OwnSession(wanted, engine, METHODS[wanted.method], options, tuned, held, told)


def usual_method(engine: str) -> str:
    """What is measured if nobody names a method: native delivery, in vLLM what a server does."""
    return NATIVE if engine == "reference" else "quickmerge"


def served_options(method: str, engine: str) -> dict[str, Any]:
    """Options that make a server do what a method does in the bench.

    The bench keeps no turns of a chat whole. Its reference engine delivers in one way, which a
    server is told; in vLLM a method without a delivery of its own has the server's usual one.

    Raises:
        UserError: no engine of the bench measures what a server would do by this method.
    """
    known = [*VARIANTS, *([NATIVE] if engine == "reference" else [])]
    if method not in known:
        raise UserError(f"--method {method!r} cannot be tuned; known: {', '.join(known)}")
    if method == NATIVE:
        return {"delivery": "native", "keep_roles": "none"}
    pinned = {"delivery": "inject"} if engine == "reference" else {}
    return {**pinned, **VARIANTS[method][1], "keep_roles": "none"}
