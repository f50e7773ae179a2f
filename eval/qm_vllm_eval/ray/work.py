"""What goes to a replica and what comes back: units, answers, outcomes; what a task is."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

Key = tuple[str, float]
"""Row id and ratio: what a run does once."""

UNUSABLE = "unusable row"
TOO_LONG = "too long"
REFUSED = "refused by the engine"
LOST = "replica died"


@dataclass(frozen=True)
class Unit:
    """One request.

    Attributes:
        row_id, ratio: together unique in a run. ratio: share of the prompt's tokens to keep.
        prompt: as vLLM takes it: ``{"prompt_token_ids": list[int] [N]}``, ``{"prompt": str}`` or
            ``{"prompt_embeds": Tensor [N, hidden]}``.
        sampling: keyword arguments of ``SamplingParams``.
        options: per-request options of the plug-in, by name.
        facts: what the task needs to score the answer; plain values that JSON has.
        failure, reason: why the unit must not run, one word and a sentence; empty if it may.
    """

    row_id: str
    ratio: float
    prompt: Mapping[str, Any] = field(default_factory=dict, repr=False)
    sampling: Mapping[str, Any] = field(default_factory=dict, repr=False)
    options: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict, repr=False)
    failure: str = ""
    reason: str = ""

    @property
    def key(self) -> Key:
        """Row id and ratio."""
        return (self.row_id, self.ratio)


@dataclass(frozen=True)
class Answer:
    """What an engine said to one unit.

    Attributes:
        token_ids: of the answer [T]. text: the same as text; empty without detokenisation.
        logprobs: of the tokens said, nats [T]; None if they were not asked for.
        report: the plug-in's report on the request.
        started, seconds: when the engine took the request (Unix time), and how long it had it.
    """

    token_ids: list[int]
    text: str
    logprobs: list[float] | None
    report: Mapping[str, Any]
    started: float
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """The end of one unit: an answer, or the kind and the reason of a failure.

    Attributes:
        replica: which one answered. tries: how often the unit was handed to a replica.
        lost: the replica died with the unit, so that another may try it.
    """

    unit: Unit
    answer: Answer | None = None
    replica: str = ""
    failure: str = ""
    reason: str = ""
    tries: int = 1
    lost: bool = False


class Task(Protocol):
    """An evaluation: which units there are, and what an answer is worth.

    A task is pickled when a worker of Ray Data reads its units.
    """

    name: str
    metrics: tuple[str, ...]
    """Columns of :meth:`score`, each with a mean in the summary."""
    flags: tuple[str, ...]
    """Columns of :meth:`score` that are true for rows to be told of; the summary counts them."""

    def units(self) -> Iterator[Unit]:
        """All units, lazily and in the same order each time.

        Raises:
            DataSetError: the data cannot be read.
        """

    def score(self, facts: Mapping[str, Any], answer: Answer) -> dict[str, Any]:
        """Columns of the row: the metrics, and more if the task likes."""

    def settings(self) -> dict[str, Any]:
        """What decides a unit's result, apart from the engine: a change starts a new journal."""

    def facts(self) -> dict[str, Any]:
        """What the summary says about the task: the scorer and its version, the data."""


_OWN_FIELDS = {
    "dtype": "dtype", "max_model_len": "max_model_len", "max_num_seqs": "max_num_seqs",
    "tensor_parallel_size": "tensor_parallel", "enforce_eager": "eager",
    "block_size": "block_size",
}
"""Arguments of ``vllm.LLM`` that are fields of :class:`EngineSettings`."""


@dataclass(frozen=True)
class EngineSettings:
    """How a replica's engine is started.

    Attributes:
        model: folder or name. dtype: as vLLM takes it.
        max_model_len: longest prompt plus answer, tokens; None: what the model allows.
        max_num_seqs: requests in the engine at once. With 1 the figures of a row do not depend
            on what runs beside it, to the last bit.
        tensor_parallel: GPUs (or CPU ranks) of one replica.
        threads: CPU threads of one replica on a CPU.
        eager: no compiled mode: starts faster, and on a GPU decodes more slowly.
        config: fields of :class:`qm_vllm.QuickMergeConfig`.
        extra: more keyword arguments of ``vllm.LLM``, such as ``enable_prompt_embeds``.
        replica: "module:Class" of the replica, for tasks that ask an engine in their own way; it
            has the methods of :class:`qm_vllm_eval.ray.replica.Replica`. Not with the stock
            processor.
    """

    model: str
    dtype: str = "auto"
    max_model_len: int | None = None
    max_num_seqs: int = 1
    tensor_parallel: int = 1
    threads: int = 1
    eager: bool = True
    block_size: int = 32
    config: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    replica: str = "qm_vllm_eval.ray.replica:Replica"

    def with_engine_arguments(self, given: Mapping[str, Any]) -> EngineSettings:
        """These settings with keyword arguments of ``vllm.LLM`` in their fields or in ``extra``."""
        own = {_OWN_FIELDS[name]: value for name, value in given.items() if name in _OWN_FIELDS}
        more = {name: value for name, value in given.items() if name not in _OWN_FIELDS}
        return replace(self, **own, extra={**self.extra, **more})

    def deciding(self) -> dict[str, Any]:
        """The settings that may change an answer; plain values that JSON has."""
        return {
            "dtype": self.dtype, "max_model_len": self.max_model_len,
            "max_num_seqs": self.max_num_seqs, "tensor_parallel": self.tensor_parallel,
            "eager": self.eager, "block_size": self.block_size, "config": dict(self.config),
            "extra": json.loads(json.dumps(dict(self.extra), default=str)), "replica": self.replica,
        }

    def engine_kwargs(self) -> dict[str, Any]:
        """Keyword arguments of ``vllm.LLM`` beside the model, the dtype and the plug-in's."""
        given: dict[str, Any] = {
            "max_num_seqs": self.max_num_seqs, "block_size": self.block_size,
            "tensor_parallel_size": self.tensor_parallel, "seed": 0,
            "enable_prefix_caching": False,  # a row's figures would depend on the row before
            "enforce_eager": self.eager,
        }
        if self.max_model_len is not None:
            given["max_model_len"] = self.max_model_len
        return given | dict(self.extra)

    def environment(self) -> dict[str, str]:
        """Environment of the process that holds the engine; has to be set before vLLM loads.

        What the user has set in this process goes to the replicas as it is.
        """
        defaults = {
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "VLLM_LOGGING_LEVEL": "ERROR",
            "TRANSFORMERS_VERBOSITY": "error",
            "TOKENIZERS_PARALLELISM": "false",
        }
        given = {name: os.environ.get(name, value) for name, value in defaults.items()}
        if "HF_HUB_OFFLINE" in os.environ:
            given["HF_HUB_OFFLINE"] = os.environ["HF_HUB_OFFLINE"]
        return given | {
            "OMP_NUM_THREADS": str(self.threads), "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        }
