"""What a job needs of an engine, and whether the engine can ever have that."""

from __future__ import annotations

from dataclasses import dataclass

from qm_vllm.engine.facts import EngineFacts
from qm_vllm.engine.memory import job_bytes, most_kept
from qm_vllm.engine.messages import JobSpec
from qm_vllm.engine.native.blocks import prompt_blocks
from qm_vllm.engine.parts import longest_part
from qm_vllm.engine.requests.job_board import Demand
from qm_vllm.engine.untouched import Untouched

HELD = 32
"""Bytes a token of what is known of it after its part was read: scores, groups, positions."""


@dataclass(frozen=True)
class Room:
    """What an engine has for one job.

    Attributes:
        max_tokens: longest prompt. max_bytes: of worker memory. None: any.
        blocks: KV blocks of the engine; None: not known yet.
        no_native: why vLLM cannot prefill prompts for jobs; None if it can.
        no_inject: why the model's layers cannot be run over a prompt; None if they can.
    """

    max_tokens: int | None = None
    max_bytes: int | None = None
    blocks: int | None = None
    no_native: str | None = None
    no_inject: str | None = None


def demand_of(spec: JobSpec, protected: int, facts: EngineFacts) -> Demand:
    """What the job needs.

    Raises:
        ConfigError: max_kept cannot hold the protected positions.
    """
    size = spec.block_size
    at_most = most_kept(spec.config, len(spec.token_ids), protected, size)
    if spec.parts:
        return _parted_demand(spec, at_most + len(spec.parts), facts)
    held = job_bytes(spec.config, facts.shape, spec.rows, max(spec.group_kept, default=at_most))
    if spec.native:
        return _native_demand(spec, held, facts)
    if size is None:
        return Demand(held, 0, 0, 0)
    kept = -(-max(0, at_most - 1) // size)
    return Demand(held, -(-spec.rows // size), kept, _spare(kept, facts))


def _spare(kept: int, facts: EngineFacts) -> int:
    """Where results are not found through the prefix cache, they are copied once."""
    return 1 if facts.prefix_caching else kept + 1


def _parted_demand(spec: JobSpec, at_most: int, facts: EngineFacts) -> Demand:
    """Blocks of the result and of one part; bytes of a part, of what it is read over, and of the
    states that are kept."""
    size, span = facts.block_size, longest_part(spec)
    shape = facts.shape
    held = job_bytes(spec.config, shape, span + at_most, min(span, at_most))
    held += 2 * at_most * shape.hidden_size * shape.value_bytes + len(spec.token_ids) * HELD
    kept = -(-at_most // size)
    return Demand(held, -(-span // size) + kept, kept, _spare(kept, facts))


def fits(demand: Demand, room: Room) -> bool:
    """Whether the engine can ever do it."""
    return (room.max_bytes is None or demand.bytes <= room.max_bytes) and (
        room.blocks is None or demand.fits(room.blocks)
    )


def _native_demand(spec: JobSpec, held: int, facts: EngineFacts) -> Demand:
    """Blocks of the result, and beside them those in which vLLM prefills the prompt."""
    size, groups = facts.block_size, len(facts.windows)
    own = sum(spec.group_blocks)
    source = prompt_blocks(spec.rows, facts.windows, size, facts.in_flight_tokens)
    delivered = groups if facts.prefix_caching else own + groups
    return Demand(held, own, own, max(source, delivered))


def must_fit(spec: JobSpec, demand: Demand, facts: EngineFacts, room: Room) -> None:
    """Refuse what the engine can never do.

    Raises:
        Untouched: the job is too long for the model's context, for the memory of jobs or for the
            KV cache.
    """
    what = f"a job of {len(spec.token_ids)} prompt tokens"
    if spec.hint:
        what += f" and {len(spec.hint)} of a hint"
        # vLLM reads no more than its length, and samples one behind them; the encoder no more than
        # the model has positions for.
        name, most = "max_model_len", facts.max_model_len - 1
        if not spec.native:
            name, most = "the model's positions", facts.trained_length
        if spec.rows > most and not spec.parts:
            raise Untouched(
                "too_long", f"{what} leaves no room in {name} ({most}); shorten the hint"
            )
    if room.max_bytes is not None and demand.bytes > room.max_bytes:
        raise Untouched(
            "too_long",
            f"{what} needs {_mib(demand.bytes)} and "
            f"{_mib(room.max_bytes)} are set aside for jobs; raise job_memory_share",
        )
    if room.blocks is not None and not demand.fits(room.blocks):
        raise Untouched(
            "too_long",
            f"{what} needs {max(demand.blocks, demand.kept)} KV blocks "
            f"and {demand.spare} more, and the engine has {room.blocks}",
        )


def _mib(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"
