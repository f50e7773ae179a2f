"""Text rows through Ray Data LLM's own vLLM processor; engine arguments carry the plug-in.

Reading, the engines, their restarts and the retries are Ray Data's. Two things are added. The
processor keeps of an engine's output the text and the tokens but not ``kv_transfer_params``, so
:class:`ReportingUDF` copies the plug-in's report into the row. And rows that Ray Data gave up are
missing from its output: they get a second pass, one at a time, and then a reason.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

import pyarrow as pa
import ray
from ray.data import DataContext, Dataset, Datasource, ReadTask
from ray.data.block import BlockMetadata
from ray.data.llm import build_processor, vLLMEngineProcessorConfig
from ray.exceptions import RayError
from ray.llm._internal.batch.stages.vllm_engine_stage import vLLMEngineStageUDF

from qm_vllm.api import engine_args
from qm_vllm.config import QuickMergeConfig
from qm_vllm.errors import UserError
from qm_vllm.processor import computes_bf16
from qm_vllm.reports import REPORT_KEY
from qm_vllm.request_options import request_args
from qm_vllm_eval.ray.pool import MOST_TRIES
from qm_vllm_eval.ray.work import LOST, REFUSED, Answer, EngineSettings, Key, Outcome, Task, Unit

BLOCK_BYTES = 1
"""So that each row is a block, which is what Ray Data hands over, loses and tries again. Its own
size, 128 MiB, would also hold every row back until the last."""

_STAGE = "vLLMEngineStage"
_ERROR = "__inference_error__"


def run(
    task: Task, done: set[Key], settings: EngineSettings, replicas: int, in_flight: int, *,
    gpus: bool,
) -> Iterator[Outcome]:
    """Outcomes of the task's units that are not in ``done``, as they come.

    ``done`` may grow meanwhile: whoever iterates adds what it has written.

    Args:
        in_flight: most units that one engine has.

    Raises:
        UserError: the data cannot be read on the workers, or no engine starts.
    """
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    passes = ((in_flight, MOST_TRIES - 2), (1, 0))  # the last try is alone with its engine
    for number, (most, retries) in enumerate(passes):
        if number and all(unit.key in done for unit in task.units()):
            return
        processor = _processor(settings, replicas, most, retries, gpus=gpus)
        try:
            for row in processor(_dataset(task, frozenset(done))).iter_rows():
                yield _outcome(row)
        except RayError as error:
            first = str(error).strip().splitlines()[-1]
            raise UserError(f"Ray Data stopped: {first}; the same command goes on") from error
    for unit in task.units():
        if unit.key in done:
            continue
        if unit.failure:
            yield Outcome(unit, failure=unit.failure, reason=unit.reason, tries=0)
        else:
            reason = "the replica died each time it had this row"
            yield Outcome(unit, None, "", LOST, reason, tries=MOST_TRIES)


class UnitSource(Datasource):
    """A task's units as a data set of Ray Data, read as a stream by one worker."""

    def __init__(self, task: Task, done: frozenset[Key]) -> None:
        super().__init__()
        self.task = task
        self.done = done

    def estimate_inmemory_data_size(self) -> int | None:
        """Not known before it is read."""
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, **_: Any
    ) -> list[ReadTask]:
        """One task: which rows there are is known only by reading them in order."""
        task, done = self.task, self.done

        def read() -> Iterable[pa.Table]:
            for unit in task.units():
                if unit.key not in done:
                    yield pa.Table.from_pylist([_record(unit)], schema=SCHEMA)

        metadata = BlockMetadata(
            num_rows=None, size_bytes=None, input_files=None, exec_stats=None
        )
        return [ReadTask(read, metadata, per_task_row_limit=per_task_row_limit)]


SCHEMA = pa.schema({
    "row_id": pa.string(), "ratio": pa.float64(), "facts": pa.string(), "failure": pa.string(),
    "tokenized_prompt": pa.list_(pa.int64()), "sampling_params": pa.string(), _ERROR: pa.string(),
})


class ReportingUDF(vLLMEngineStageUDF):
    """The stock stage, whose rows also carry the plug-in's report, the replica and the time."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._reports: dict[str, Any] = {}
        self._name = ray.get_runtime_context().get_actor_id()[:8]
        generate = self.llm.engine.generate

        async def noted(*, request_id: str, **given: Any) -> AsyncIterator[Any]:
            async for output in generate(request_id=request_id, **given):
                if output.finished:
                    told = (output.kv_transfer_params or {}).get(REPORT_KEY)
                    self._reports[request_id] = told or {}
                yield output

        self.llm.engine.generate = noted

    async def _generate_with_error_handling(
        self, row: dict[str, Any], batch_uuid: Any
    ) -> dict[str, Any]:
        # As JSON, or Arrow would give each request the options of all others, as nulls.
        row = row | {"sampling_params": json.loads(row["sampling_params"])}
        started, clock = time.time(), time.perf_counter()
        result = await super()._generate_with_error_handling(row, batch_uuid)
        said = {
            "token_ids": [int(token) for token in result["generated_tokens"]],
            "text": result["generated_text"],
            "logprobs": None,
            "report": self._reports.pop(str(result["request_id"]), {}),
            "started": started,
            "seconds": time.perf_counter() - clock,
        }
        return {
            self.IDX_IN_BATCH_COLUMN: result[self.IDX_IN_BATCH_COLUMN],
            "answer": json.dumps(said), "replica": self._name, _ERROR: result[_ERROR],
        }


def _record(unit: Unit) -> dict[str, Any]:
    sampling = dict(unit.sampling) | {"extra_args": request_args(**unit.options)}
    return {
        "row_id": unit.row_id, "ratio": unit.ratio, "facts": json.dumps(unit.facts),
        "failure": unit.failure, "tokenized_prompt": unit.prompt.get("prompt_token_ids", []),
        "sampling_params": json.dumps(sampling), _ERROR: unit.reason,
    }


def _outcome(row: dict[str, Any]) -> Outcome:
    unit = Unit(row["row_id"], row["ratio"], facts=json.loads(row["facts"]))
    if row["failure"]:
        return Outcome(unit, failure=row["failure"], reason=row[_ERROR], tries=0)
    if row[_ERROR]:
        reason = f"vLLM refused the request: {row[_ERROR]}"
        return Outcome(unit, None, row["replica"], REFUSED, reason)
    return Outcome(unit, Answer(**json.loads(row["answer"])), row["replica"])


def _dataset(task: Task, done: frozenset[Key]) -> Dataset:
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = BLOCK_BYTES
    context.max_errored_blocks = -1  # a row that ends its engine does not end the run
    # One block, or Ray Data adds a step that splits what is read.
    return ray.data.read_datasource(UnitSource(task, done), override_num_blocks=1)


def _processor(
    settings: EngineSettings, replicas: int, in_flight: int, retries: int, *, gpus: bool
) -> Any:
    width = settings.tensor_parallel
    bundle = {"CPU": 1.0, "GPU": 1.0} if gpus else {"CPU": 1.0}
    kwargs = settings.engine_kwargs() | engine_args(QuickMergeConfig(**settings.config))
    dtype = settings.dtype
    if dtype == "auto" and not gpus and not computes_bf16():
        dtype = "float32"
    config = vLLMEngineProcessorConfig(
        model_source=settings.model,
        engine_kwargs={
            "distributed_executor_backend": "uni" if width == 1 else "mp", **kwargs, "dtype": dtype,
        },
        concurrency=(replicas, replicas),
        batch_size=1,  # rows end, are lost and are tried again one by one
        max_concurrent_batches=in_flight,
        max_tasks_in_flight_per_actor=in_flight,
        should_continue_on_error=True,
        log_engine_metrics=False,
        placement_group_config={"bundles": [bundle] * width},
        runtime_env={"env_vars": settings.environment()},
        chat_template_stage=False, tokenize_stage=False, detokenize_stage=False,
    )
    processor = build_processor(config, postprocess=_told)
    stage = processor.get_stage_by_name(_STAGE)
    options = stage.map_batches_kwargs | {"max_task_retries": retries}
    processor.stages[_STAGE] = stage.model_copy(
        update={"fn": ReportingUDF, "map_batches_kwargs": options}
    )
    return processor


def _told(row: dict[str, Any]) -> dict[str, Any]:
    names = ("row_id", "ratio", "facts", "failure", "answer", "replica")
    return {name: row[name] for name in names}
