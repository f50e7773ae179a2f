"""The tasks, by name, and the one function that builds a sample of any of them.

Several follow the ideas of RULER (Hsieh et al. 2024): needles, variable tracking and word
frequencies. The wording, the texts and the scoring of likelihoods are this project's own. The 13
tasks by RULER's own definitions are in :mod:`.ruler`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from qm_vllm_eval.haystacks import HAYSTACKS
from qm_vllm_eval.sample import SPLITS, Sample, sample_id
from qm_vllm_eval.tasks import (
    abstract,
    babilong,
    continuation,
    copy_edit,
    key_value,
    leval,
    longbench,
    many_shot,
    multi_needle,
    needle,
    next_code_line,
    paragraphs,
    qmsum,
    question_answering,
    recall,
    ruler,
    squality,
    variable_tracking,
    wikitext,
    word_frequency,
)
from qm_vllm_eval.tasks.base import DATA, WORDS, Request, Task, Unfit, UnknownTask

__all__ = ["DATA", "RULER", "TASKS", "Task", "UnknownTask", "build_sample"]

RULER = ruler.FAMILY
_FAMILIES = (
    needle,
    multi_needle,
    variable_tracking,
    word_frequency,
    recall,
    question_answering,
    continuation,
    copy_edit,
    key_value,
    abstract,
    next_code_line,
    paragraphs,
    many_shot,
    wikitext,
    longbench,
    leval,
    squality,
    qmsum,
    babilong,
    ruler,
)
TASKS: dict[str, Task] = {task.name: task for family in _FAMILIES for task in family.TASKS}

_DRAWS = 200


def build_sample(
    task: str,
    *,
    length: int,
    split: str,
    index: int,
    tokenizer: Any,
    haystacks: Sequence[str] = HAYSTACKS,
    query_visible: bool = True,
) -> Sample:
    """Sample number ``index`` of a task: equal arguments give an equal sample in any process.

    Args:
        length: tokens that the whole prompt has at most (at least 40 fewer), measured as the
            first two parts of :func:`qm_vllm_eval.prompt.prompt_parts`.
        split: "tune" or "report"; they share neither random choices nor texts.
        index: 0 or more; the haystack turns with it over those that the task may use.
        tokenizer: a Hugging Face tokenizer.
        haystacks: names of texts to use; see :func:`qm_vllm_eval.haystacks.available`.
        query_visible: only recorded (and shown in the sample's name); the text is the same.

    Raises:
        UnknownTask: no such task.
        ValueError: the length is too short for the task, or another argument is wrong.
        HaystackError: a text or a data file is not on this machine.
        Exhausted: the task's published documents give no sample of this number at this length.
    """
    found = TASKS.get(task)
    if found is None:
        raise UnknownTask(f"no task {task!r}; there are {', '.join(TASKS)}")
    if split not in SPLITS:
        raise ValueError(f"no split {split!r}; there are {', '.join(SPLITS)}")
    if index < 0:
        raise ValueError(f"the index must be 0 or more, got {index}")
    if length < found.minimum:
        raise ValueError(f"{task} needs a length of at least {found.minimum} tokens, got {length}")
    usable = _usable(found, haystacks)
    turn, place = divmod(index, len(usable))
    for draw in range(_DRAWS):
        request = Request(found, length, split, index, tokenizer, usable[place], turn, draw)
        try:
            sample = found.build(request)
        except Unfit:
            continue
        if query_visible:
            return sample
        name = sample_id(task, length, split, index, query_visible)
        return replace(sample, query_visible=False, sample_id=name)
    raise ValueError(
        f"{task} cannot be built with {length} tokens of this tokenizer; the minimum of "
        f"{found.minimum} holds for about four characters a token, take a greater length"
    )


def _usable(task: Task, haystacks: Sequence[str]) -> list[str]:
    if task.haystacks in ((WORDS,), (DATA,)):
        return list(task.haystacks)
    unknown = [name for name in haystacks if name not in HAYSTACKS]
    if unknown:
        raise ValueError(f"no haystack {unknown[0]!r}; there are {', '.join(HAYSTACKS)}")
    usable = [name for name in task.haystacks if name in haystacks]
    if not usable:
        raise ValueError(f"{task.name} needs one of the haystacks {', '.join(task.haystacks)}")
    return usable
