"""The checks that run when an engine starts: is what :mod:`.symbols` lists there, and does it fit?

A signature fits if it accepts what is passed, whatever else it has. What is called, and when, is
found out by serving a request that is made up (:mod:`.rehearsal`).
"""

from __future__ import annotations

import dis
import importlib
import inspect
from dataclasses import dataclass
from functools import cache
from typing import Any

from qm_vllm_patches.log import get_logger
from qm_vllm_patches.symbols import (
    ATTRIBUTES,
    BELOW_VERSION,
    CALLS,
    CONNECTOR,
    HOOKS,
    IMPORTS,
    MIN_VERSION,
    OPTIONAL,
)

logger = get_logger(__name__)

PLATFORMS = ("vllm.v1.worker.cpu_worker", "vllm.v1.worker.gpu_worker")
"""Modules that exist on one platform alone, perhaps; the one in use fails by itself."""


@dataclass(frozen=True)
class Finding:
    """One check: what was looked at, whether it fits, and what was seen.

    Attributes:
        untried: it is newer than what was tried, so other checks must say whether it fits.
    """

    name: str
    ok: bool
    detail: str
    untried: bool = False


def check(*, strict: bool = False) -> list[Finding]:
    """Compare the installed vLLM with what the plug-in was written for.

    Args:
        strict: a vLLM that is newer than those that were tried does not fit.

    Raises:
        ImportError: vLLM is not installed.
    """
    return [
        _version(strict), *_names(), *_attributes(), *_hooks(), *_calls(), _resize(), *_behaviour()
    ]


def missing_optional() -> list[str]:
    """Names in :data:`~.symbols.OPTIONAL` that this machine lacks (another platform's, usually)."""
    return [
        f"{module}.{name}"
        for module, (names, _) in OPTIONAL.items()
        for name in names
        if _find(module, name) is None
    ]


def require(*, strict: bool = False) -> None:
    """Raise RuntimeError, with one sentence, if the installed vLLM does not fit.

    A newer one that passes all checks is served, with a warning; not if ``strict``.
    """
    findings = check(strict=strict)
    bad = [finding for finding in findings if not finding.ok]
    tried = f"vLLM {_text(MIN_VERSION)} up to, not including, {_text(BELOW_VERSION)}"
    if bad:
        seen = "; ".join(f"{finding.name}: {finding.detail}" for finding in bad)
        raise RuntimeError(
            f"qm_vllm supports {tried}, and this one does not fit ({seen}); install a supported "
            "version or start the engine without engine_args()"
        )
    for finding in findings:
        if finding.untried:
            logger.warning(
                "qm_vllm was tried with %s, and this is %s: it passes all checks of the start, so "
                "it is used; set strict_version to refuse it", tried, finding.detail,
            )


def _version(strict: bool) -> Finding:
    import vllm

    # Not importlib.metadata: the CPU build is installed under another distribution name.
    parts = tuple(int(p) for p in vllm.__version__.split("+")[0].split(".")[:2] if p.isdigit())
    newer = parts >= BELOW_VERSION
    ok = parts >= MIN_VERSION and not (newer and strict)
    return Finding("vLLM version", ok, vllm.__version__, untried=newer)


def _names() -> list[Finding]:
    findings = []
    for module, (names, used_in) in IMPORTS.items():
        if module in PLATFORMS:
            continue
        missing = [name for name in names if _find(module, name) is None]
        detail = f"lacks {', '.join(missing)}" if missing else f"used in {used_in}"
        findings.append(Finding(module, not missing, detail))
    return findings


def _attributes() -> list[Finding]:
    """Whether the classes that are imported still have what is read from them."""
    findings = []
    for module, (names, _) in IMPORTS.items():
        for name in names if module not in PLATFORMS else ():
            found, wanted = _find(module, name), ATTRIBUTES.get(name)
            if wanted is None or not isinstance(found, type):
                continue
            missing = sorted(set(wanted) - _members(found))
            detail = f"lacks {', '.join(missing)}" if missing else f"{len(wanted)} attributes"
            findings.append(Finding(name, not missing, detail))
    return findings


@cache
def _members(owner: type) -> set[str]:
    """Names on a class, its annotations, and the attributes that any of its methods sets.

    Read from the compiled code: parsing the sources would take seconds of each start.
    """
    names = set(dir(owner))
    for base in owner.__mro__[:-1]:
        names |= set(vars(base).get("__annotations__", {}))
        # What we have wrapped ourselves sets what it did before.
        for method in map(inspect.unwrap, filter(inspect.isfunction, vars(base).values())):
            names |= {
                step.argval for step in dis.get_instructions(method) if step.opname == "STORE_ATTR"
            }
    return names


def _hooks() -> list[Finding]:
    """Whether vLLM still calls each hook with as many values as ours take."""
    bases = [_find(CONNECTOR, name) for name in ("KVConnectorBase_V1", "SupportsHMA")]
    findings = []
    for name, passed in HOOKS.items():
        method = next((getattr(base, name) for base in bases if hasattr(base, name)), None)
        if method is None:
            findings.append(Finding(f"hook {name}", False, "is gone"))
            continue
        own = [p for p in inspect.signature(method).parameters.values() if p.name != "self"]
        needed = [p for p in own if p.default is p.empty and p.kind in _POSITIONAL]
        room = [p for p in own if p.kind in _POSITIONAL]
        ok = passed is None or len(needed) <= passed <= len(room)
        findings.append(Finding(f"hook {name}", ok, f"({', '.join(p.name for p in own)})"))
    return findings


_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _calls() -> list[Finding]:
    findings = []
    for module, path, positional, keywords in CALLS:
        name = f"{module.rpartition('.')[2]}.{path}"
        function: Any = _find(module, path)
        if function is None:
            findings.append(Finding(name, False, "is gone"))
            continue
        try:
            signature = inspect.signature(function)
            signature.bind(*range(positional), **dict.fromkeys(keywords))
            findings.append(Finding(name, True, str(tuple(signature.parameters))))
        except TypeError as error:
            findings.append(Finding(name, False, f"does not take what is passed ({error})"))
    return findings


def _resize() -> Finding:
    try:
        from qm_vllm_patches.requests import self_check

        problem = self_check()
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
    return Finding("resizing a request", problem is None, problem or "equal to a fresh request")


def _behaviour() -> list[Finding]:
    """What a request that is made up goes through."""
    try:
        from qm_vllm_patches.rehearsal import rehearse

        outcomes = rehearse()
    except Exception as error:  # the modules or the configuration are others
        outcomes = [("a rehearsal", f"{type(error).__name__}: {error}")]
    return [
        Finding(name, problem is None, problem or "went as expected")
        for name, problem in outcomes
    ]


def _find(module: str, path: str) -> Any:
    """The object, or None where it is not."""
    try:
        found: Any = importlib.import_module(module)
        for name in path.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError):
        return None
    return found


def _text(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
