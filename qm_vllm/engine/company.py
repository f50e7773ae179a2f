"""Which other KV connectors may stand beside ours, in vLLM's ``MultiConnector``."""

from __future__ import annotations

from qm_vllm.api import CONNECTOR_NAME, SCHEDULER
from qm_vllm_patches.settings import EngineSettings

WELCOME = ("OffloadingConnector",)
"""Those that were tried: what they keep, they find by vLLM's hashes of blocks, which are salted."""

_HANDS_OVER = (
    "hands the KV of whole prompts from one engine to another, and this engine would compute them "
    "again to compress them"
)
_BY_IDS = (
    "names what it keeps by the ids of tokens, so it would give the KV of compressed prompts to "
    "plain ones"
)
WHY_NOT = {
    "LMCacheConnectorV1": _BY_IDS,
    "MoRIIOConnector": _HANDS_OVER,
    "MooncakeConnector": _HANDS_OVER,
    "NixlConnector": _HANDS_OVER,
    "NixlPullConnector": _HANDS_OVER,
    "NixlPushConnector": _HANDS_OVER,
}


def refuse_company(settings: EngineSettings) -> str | None:
    """A sentence if the plug-in cannot work beside the engine's other connectors, else None."""
    names = settings.company
    if not names:
        return None
    if names.count(CONNECTOR_NAME) != 1 or names[0] != CONNECTOR_NAME:
        return (
            f"MultiConnector has the connectors {', '.join(names)}; {CONNECTOR_NAME} must be there "
            "once, before all others, so that none of them sees a prompt before it is compressed"
        )
    for name in names[1:]:
        if name not in WELCOME:
            why = WHY_NOT.get(name, "was not tried beside compressed prompts")
            return f"{name} {why}; beside this plug-in only {', '.join(WELCOME)} is supported"
    if settings.scheduler != SCHEDULER:
        return (
            f"beside other connectors scheduler_cls must be {SCHEDULER!r}, as engine_args() sets "
            f"it, not {settings.scheduler!r}"
        )
    return None
