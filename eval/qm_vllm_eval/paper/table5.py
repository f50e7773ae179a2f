"""Table 5 of the paper: QuickMerge++ on four other data sets, without retraining.

The baseline reads all tokens. QuickMerge++ is put in at inference only: nothing is trained for it.
MSCOCO and Something-Something v2 go through the frozen image encoder and a decoder that was
trained on all its states (:mod:`qm_vllm_eval.paper.table5_states`), TVQA and QASPER through the
served language model in vLLM (:mod:`qm_vllm_eval.paper.question_task`), whose engine is in a
process of its own. Metrics are in per cent; compression is N / K, mean and deviation over the rows
(the paper does not say over what it takes the deviation). The entropy budget decides K for the
encoder's states; the served model keeps 1/2.4 of each prompt.

At the scales smoke and small, where no path is given, the sets are fixtures of two to four rows,
random pixels and invented texts: they show that everything runs, and no figure means anything.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import torch

from qm_vllm_eval.datasets.catalogue import open_published
from qm_vllm_eval.datasets.fixtures import write_fixture
from qm_vllm_eval.paper.scale import Scale
from qm_vllm_eval.paper.table3_process import Child
from qm_vllm_eval.paper.table4 import MOST_REASON, RATIO
from qm_vllm_eval.ray.journal import settings_hash

Say = Callable[[str], None]
FIXTURE = "fixture made here"
COCO, SOMETHING, TVQA, QASPER = "coco_captions", "something", "tvqa", "qasper"
STATES, QUESTIONS = (COCO, SOMETHING), (TVQA, QASPER)


@dataclass(frozen=True)
class Line:
    """A row of the paper's table.

    Attributes:
        column: of a task's rows, None for the encoder's sets.
        paper: baseline, QuickMerge++, compression.
    """

    task: str
    metric: str
    column: str | None
    paper: tuple[float, float, float]


LINES = {
    COCO: Line("MSCOCO", "BLEU-4", None, (35.7, 36.0, 2.21)),
    SOMETHING: Line("SSv2", "accuracy", None, (53.1, 53.8, 2.06)),
    TVQA: Line("TVQA", "QA accuracy", "accuracy", (71.2, 71.5, 1.92)),
    QASPER: Line("QASPER", "F1", "f1", (75.9, 76.4, 2.35)),
}
"""By the names that :func:`open_published` takes, in the paper's order."""
SMOKE_ROWS = 3
QUESTION_ROWS: dict[str, int | None] = {"smoke": SMOKE_ROWS, "small": 100, "medium": 500}
"""Most questions of a set; all at the scale full."""
SMOKE_TOKENS = 1000
"""Longest prompt at the scale smoke: an engine for short prompts starts faster."""


@dataclass(frozen=True)
class Table5Data:
    """Data that the user has, as :func:`open_published` takes them; None: not at hand.

    Attributes:
        coco, something, tvqa, qasper: paths (QASPER's may be its name on the hub).
        model: that answers questions, folder or name; None: the embedded SmolLM2.
        most_tokens: longest prompt of a question; a longer one is left out.
        image_encoder, text_encoder: as :func:`load_encoder` takes them; of the latter only the
            tokenizer is used.
    """

    coco: str | None = None
    something: str | None = None
    tvqa: str | None = None
    qasper: str | None = None
    model: str | None = None
    most_tokens: int = 7900
    image_encoder: str = "dinov2"
    text_encoder: str = "minilm"

    def source(self, name: str) -> str | None:
        """The path of a set by its name in :data:`LINES`."""
        given = {COCO: self.coco, SOMETHING: self.something, TVQA: self.tvqa, QASPER: self.qasper}
        return given[name]


def rows(
    scale: Scale, out: Path, data: Table5Data, device: torch.device,
    say: Say = lambda line: None,
) -> list[dict[str, Any]]:
    """The table's four rows, in the paper's order.

    Args:
        out: ``fixtures/``, ``tvqa/``, ``qasper/`` and ``table5/`` are made in it. A run that was
            stopped goes on there: with the next question, or with the next of the other sets.
        device: of the encoder and the decoder.
        say: is told what runs next.

    Returns:
        flat dicts with the same keys: task, metric; baseline, quickmerge, difference in per cent;
        compression, compression_std; rows (that were measured both ways), data; paper_baseline,
        paper_quickmerge, paper_compression; reason: why figures are missing, else "". What could
        not be measured is None. A set that fails gives a reason and does not stop the others.
    """
    sources = {name: _source(name, scale, out, data) for name in LINES}
    found: dict[str, Mapping[str, Any]] = {}
    for name in STATES:
        path, _, reason = sources[name]
        found[name] = {"reason": reason} if reason else _kept(
            out / "table5" / f"{name}.json",
            settings_hash({"scale": asdict(scale), "path": path, "image": data.image_encoder,
                           "text": data.text_encoder}),
            partial(_states, name, path, scale, data, device, say),
        )
    torch.cuda.empty_cache()  # the engine's process wants most of the memory
    asked = {name: sources[name][0] for name in QUESTIONS if not sources[name][2]}
    answers = _answers(asked, scale, out, data, say) if asked else {}
    for name in QUESTIONS:
        found[name] = answers.get(name, {"reason": sources[name][2]})
    return [_row(line, sources[name][1], found[name]) for name, line in LINES.items()]


def _source(name: str, scale: Scale, out: Path, data: Table5Data) -> tuple[str, str, str]:
    """The path of a set, what the table calls it, and why there is none."""
    given = data.source(name)
    try:
        if given is None and scale.name in ("smoke", "small"):
            made = write_fixture(name, out / "fixtures" / name)
            return str(made.folder), FIXTURE, made.lacking
        open_published(name, given, "validation")
    except Exception as error:  # one set's fault is not the others'
        return "", Path(given).name if given else "", sentence(error)
    return str(given), Path(str(given)).name, ""


def _kept(file: Path, settings: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What an earlier run measured with the same settings; else measured now, kept if it worked."""
    if file.is_file():
        held = json.loads(file.read_text(encoding="utf-8"))
        if held["settings"] == settings:
            return dict(held["found"])
    try:
        found = work()
    except Exception as error:  # see _source
        return {"reason": sentence(error)}
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(json.dumps({"settings": settings, "found": found}) + "\n", encoding="utf-8")
    part.replace(file)
    return found


def _states(
    name: str, path: str, scale: Scale, data: Table5Data, device: torch.device, say: Say
) -> dict[str, Any]:
    from qm_vllm.encoders import load_encoder
    from qm_vllm_eval.paper import table5_states

    say(f"table 5: {LINES[name].task}, the frozen encoder and a decoder on all its states")
    # The validation split is there in all forms of both sets, and its answers are told.
    learnt: Any
    asked: Any
    learnt, asked = (open_published(name, path, split) for split in ("train", "validation"))
    counts = scale.images if name == COCO else scale.video
    if scale.name == "smoke":
        counts = (SMOKE_ROWS, SMOKE_ROWS)
    encoder = load_encoder(data.image_encoder, device=device)
    if name == COCO:
        tokenizer: Any = load_encoder(data.text_encoder)
        words = tokenizer.tokenizer
        return table5_states.captions(learnt, asked, counts, encoder, words, scale, device)
    classes = len(learnt.classes)
    return table5_states.actions(learnt, asked, classes, counts, encoder, scale, device)


class Questions:
    """Answers the questions of a set in this process, with one engine for all sets.

    Args:
        settings: :class:`qm_vllm_eval.ray.work.EngineSettings`. model_name: for the files.
    """

    def __init__(self, settings: Any, model_name: str) -> None:
        self._settings, self._model_name = settings, model_name

    def __call__(self, task: Any, out: Path) -> str:
        """Run what is not in the journal in ``out``; "" or why that could not be done."""
        from qm_vllm_eval.ray.runner import LOCAL, RunOptions, run

        try:
            run(task, self._settings, self._model_name, RunOptions(out, engine=LOCAL))
        except Exception as error:  # the other set is asked all the same
            return sentence(error)
        return ""


def _answers(
    asked: Mapping[str, str], scale: Scale, out: Path, data: Table5Data, say: Say
) -> dict[str, dict[str, Any]]:
    """What :func:`_paired` or a reason says, for each set, from an engine in its own process."""
    child = None
    found: dict[str, dict[str, Any]] = {}
    try:
        tasks, settings, model_name = _tasks(asked, scale, data)
        child = Child(Questions, settings, model_name)
        child.ready()
        for name, task in tasks.items():
            say(f"table 5: {LINES[name].task}, through {model_name} in vLLM")
            reason = child.ask(task, out / name)
            found[name] = {"reason": reason} if reason else _paired(out / name, name)
    except Exception as error:  # no engine, no tokenizer, a process that died
        found |= {name: {"reason": sentence(error)} for name in asked if name not in found}
    finally:
        if child is not None:
            child.stop()
    return found


def _tasks(
    asked: Mapping[str, str], scale: Scale, data: Table5Data
) -> tuple[dict[str, Any], Any, str]:
    """Tasks by name, settings of their engine, the model's name."""
    from qm_vllm.assets import embedded
    from qm_vllm_eval.paper import question_task
    from qm_vllm_eval.ray.work import EngineSettings

    folder = data.model or str(embedded.ensure_model())
    most = min(data.most_tokens, SMOKE_TOKENS) if scale.name == "smoke" else data.most_tokens
    tasks = {
        name: question_task.QuestionTask(
            name, source, (1.0, RATIO), folder, QUESTION_ROWS.get(scale.name), most_tokens=most
        )
        for name, source in asked.items()
    }
    settings = EngineSettings(
        folder, max_model_len=most + question_task.QuestionTask.max_tokens,
        threads=torch.get_num_threads(),
        replica=f"{question_task.__name__}:{question_task.SharedReplica.__name__}",
    )
    return tasks, settings, embedded.public_name(data.model)


def _paired(folder: Path, name: str) -> dict[str, Any]:
    """Means over the questions that were answered with all tokens and with fewer."""
    import pyarrow.parquet as pq

    from qm_vllm_eval.ray.table import FILE, OK

    held = pq.read_table(folder / FILE).to_pylist()
    good = {(row["row_id"], row["ratio"] == 1.0): row for row in held if row["status"] == OK}
    pairs = [(row, good[row_id, False]) for (row_id, plain), row in good.items()
             if plain and (row_id, False) in good]
    if not pairs:
        return {"reason": held[0]["reason"] if held else "the split has no rows"}
    column = str(LINES[name].column)
    factors = [ours["source_tokens"] / ours["kept_tokens"] for _, ours in pairs]
    return {
        "baseline": 100 * fmean(plain[column] for plain, _ in pairs),
        "quickmerge": 100 * fmean(ours[column] for _, ours in pairs),
        "compression": fmean(factors), "compression_std": pstdev(factors), "rows": len(pairs),
    }


def _row(line: Line, data: str, found: Mapping[str, Any]) -> dict[str, Any]:
    ours, base = found.get("quickmerge"), found.get("baseline")
    return {
        "task": line.task, "metric": line.metric, "baseline": base, "quickmerge": ours,
        "difference": None if ours is None or base is None else ours - base,
        "compression": found.get("compression"), "compression_std": found.get("compression_std"),
        "rows": found.get("rows", 0), "data": data, "paper_baseline": line.paper[0],
        "paper_quickmerge": line.paper[1], "paper_compression": line.paper[2],
        "reason": found.get("reason", ""),
    }


def sentence(error: BaseException) -> str:
    """An error as one line: its first, or the last one of a traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines = lines or [type(error).__name__]
    told = lines[-1] if any(line.startswith("Traceback (") for line in lines) else lines[0]
    return told[:MOST_REASON]
