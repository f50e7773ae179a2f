"""One request in a scheduler of vLLM's own: held back, prefilled by a shadow, shrunk, answered."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from qm_vllm_patches.messages import StepEnvelope, WorkerEnvelope
from qm_vllm_patches.rehearsal.stage import (
    ANSWER,
    BLOCK,
    KEPT,
    PROMPT,
    Listener,
    expect,
    small_cache,
)

if TYPE_CHECKING:
    from vllm.v1.request import Request


def serve(
    config: Any, kind: type, *, ahead: bool, grouped: bool = False, brings: bool = False
) -> None:
    """One request from its arrival to its report.

    Args:
        config: of the small engine. kind: class of its scheduler; it schedules ``ahead``.
        grouped: its layers have block tables of their own, and one of two keeps less.
        brings: what was kept is brought by the connector, and not found in the prefix cache.

    Raises:
        Missed: something does not happen.
    """
    from vllm.sampling_params import SamplingParams
    from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput
    from vllm.v1.request import Request

    config.scheduler_config.async_scheduling = ahead
    scheduler: Any = kind(
        vllm_config=config, kv_cache_config=small_cache(grouped=grouped),
        structured_output_manager=_Grammars(), block_size=BLOCK,
    )
    half: Listener = scheduler.connector.scheduler_side
    half.holes, half.brings = [0, 1] if grouped else [0], brings
    params = SamplingParams(max_tokens=len(ANSWER))
    scheduler.add_request(
        Request("held", list(range(PROMPT)), params, None, block_hasher=_hashes)
    )
    expect(half.handle, "a connector is not told of a new request (on_new_request)")

    step = scheduler.schedule()
    held = "matched_tokens" in half.heard and scheduler.has_requests()
    expect(held and not step.total_num_scheduled_tokens,
           "a request cannot be held back (get_num_new_matched_tokens)")
    expect(isinstance(step.kv_connector_metadata, StepEnvelope),
           "a step without tokens brings workers no message (build_connector_meta)")
    said = KVConnectorOutput(kv_connector_worker_meta=WorkerEnvelope("done"))
    scheduler.update_from_output(step, ModelRunnerOutput([], {}, kv_connector_output=said))
    expect("worker_message" in half.heard,
           "what workers say in a step without tokens is not heard (update_connector_output)")

    def go(request_id: str, token: int) -> tuple[int, list[Any]]:
        """A step that samples one token: how many it computes, and what clients hear."""
        step = scheduler.schedule()
        counts = step.num_scheduled_tokens
        expect(set(counts) == {request_id}, f"a step computes {counts} and not {request_id}")
        output = ModelRunnerOutput([request_id], {request_id: 0}, [[token]])
        found = scheduler.update_from_output(step, output).values()
        return counts[request_id], [one for each in found for one in each.outputs]

    computed, told = go("shadow", ANSWER[0])
    blocks = [len(group) for shadow in half.steps for group in shadow.blocks]
    expect((computed, blocks) == (PROMPT, [PROMPT // BLOCK] * len(half.holes)),
           f"a shadow of {PROMPT} tokens is computed in {computed} and in {blocks} blocks")
    expect(not told and {"first_token", "shadow_ended"} <= set(half.heard),
           "the end of a shadow is not heard (request_finished), or clients see it")
    computed, told = go("held", ANSWER[1])
    expect(computed == KEPT % BLOCK + 1,
           f"of {KEPT + 1} kept tokens, {KEPT // BLOCK} blocks of which are published, "
           f"{computed} are computed")
    tables = scheduler.kv_cache_manager.get_block_ids("held")
    found = [next(i for i, block in enumerate(table) if block) for table in tables]
    expect(found == half.holes,
           f"layers that keep less begin at block {found} and not at {half.holes}")
    last = go("held", ANSWER[2])[1]
    answer = [token for one in (*told, *last) for token in one.new_token_ids]
    expect(answer == ANSWER, f"clients are told {answer} where {ANSWER} was sampled")
    expect("finished" in half.heard and "rehearsal" in (last[-1].kv_transfer_params or {}),
           "a request that ends carries no report (request_finished)")


class _Grammars:
    """Of a scheduler that has none."""

    def __getattr__(self, name: str) -> Callable[..., bool]:
        return lambda *args: True


def _hashes(request: Request) -> list[bytes]:
    """Hashes of a request's full blocks that have none yet."""
    ids, salt = list(request._all_token_ids), request.cache_salt
    ends = range((len(request.block_hashes) + 1) * BLOCK, len(ids) + 1, BLOCK)
    return [hashlib.sha256(repr((salt, ids[:end])).encode()).digest() for end in ends]
