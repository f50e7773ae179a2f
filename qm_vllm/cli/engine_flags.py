"""Flags that a command does not know itself: they go to vLLM's engine, whose parser reads them."""

from __future__ import annotations

import difflib
import os
from typing import Any

import typer

from qm_vllm import local_engine
from qm_vllm.errors import UserError
from qm_vllm_patches import llm

PASS_THROUGH = {"allow_extra_args": True, "ignore_unknown_options": True}
"""``context_settings`` of a command whose unknown flags go on to vLLM."""
SET_BY_US = ("--kv-transfer-config", "--scheduler-cls", "--worker-cls")


def refuse_ours(arguments: list[str]) -> None:
    """Raise UserError if one of the arguments is a flag that the plug-in sets."""
    for argument in arguments:
        name = argument.split("=", 1)[0].replace("_", "-")
        if name in SET_BY_US or name.startswith("--kv-transfer-config."):
            raise UserError(f"{name} is set by the plug-in itself; leave it out")
        if name == "--kv-offloading-size":
            raise UserError(
                f"{name} would take the place of the plug-in's connector; name vLLM's "
                "OffloadingConnector in --kv-transfer-config of `qm-vllm serve`"
            )


def engine_arguments(context: typer.Context, *, quiet: bool = True) -> dict[str, Any]:
    """Keyword arguments of ``vllm.LLM`` from what the command line has beside the command's own.

    vLLM is imported only if there is something to read, and the environment stays as it was: what
    the user has set is told from our defaults later, when engines start.

    Args:
        quiet: as :func:`qm_vllm.local_engine.set_environment` takes it.

    Raises:
        UserError: a flag is neither the command's nor vLLM's, a value is impossible, the plug-in
            sets the flag itself, or vLLM cannot be imported.
    """
    rest = list(context.args)
    if not rest:
        return {}
    refuse_ours(rest)
    stray = next((argument for argument in rest[:1] if not argument.startswith("-")), None)
    if stray is not None:
        raise UserError(f"{stray!r} belongs to no flag; leave it out")
    local_engine.require_vllm()
    before = set(os.environ)
    local_engine.set_environment(quiet=quiet)
    defaults = set(os.environ) - before
    try:
        given = llm.engine_arguments(rest)
    except ImportError as error:
        raise UserError(
            f"vLLM cannot be imported ({error}), so nothing is known of {rest[0]}; run "
            "`qm-vllm doctor`"
        ) from error
    except IndexError as error:  # how its parser says that a dotted flag has no value
        raise UserError(f"{rest[-1]} needs a value") from error
    except (ValueError, OSError) as error:  # OSError: of the file that --config names
        raise UserError(_sentence(str(error), context)) from error
    finally:
        for name in defaults:
            os.environ.pop(name, None)
    refuse_ours(["--" + name for name in given])  # from the file that --config names
    if "model" in given:
        raise UserError("name the model with the command's own --model, not in --config")
    return given


def _sentence(message: str, context: typer.Context) -> str:
    """What is wrong, and which flag may have been meant."""
    told = "unrecognized arguments: "
    if not message.startswith(told):
        return message.replace("\n", " ")
    first = message.removeprefix(told).split()[0].split("=")[0]
    if not first.startswith("-"):
        return f"{first!r} belongs to no flag; leave it out"
    own = [flag for one in context.command.params for flag in one.opts if flag.startswith("--")]
    name = first.replace("_", "-")
    near = difflib.get_close_matches(name, [*own, *llm.engine_flags()], n=1, cutoff=0.7)
    hint = f"; did you mean {near[0]}?" if near else "; --help shows the command's own"
    return f"{first} is no flag of this command or of vLLM's engine{hint}"
