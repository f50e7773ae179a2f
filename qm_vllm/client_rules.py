"""What the clients of a server may ask for, with its engine's configuration and model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qm_vllm.calibration import calibrated
from qm_vllm.config import ConfigError, QuickMergeConfig
from qm_vllm.layers import check_layers

logger = logging.getLogger(__name__)

LAYER_FIELDS = frozenset({"encoder_layers", "window_layers", "score_layers"})


@dataclass(frozen=True)
class ClientRules:
    """The rules of one server.

    Attributes:
        base: the engine's configuration. num_layers: of the served model; None: not known.
    """

    base: QuickMergeConfig
    num_layers: int | None

    @classmethod
    def of(cls, options: Mapping[str, Any], text_config: Any) -> ClientRules:
        """The rules of an engine.

        Args:
            options: of the plug-in, as the engine was started with them.
            text_config: transformers text configuration of the served model, or None.

        Raises:
            ConfigError: the options are impossible; no engine starts with them.
        """
        base = QuickMergeConfig.from_dict(options)
        if text_config is None:
            return cls(base, None)
        try:
            base = calibrated(base, text_config)
        except ConfigError as error:  # the engine, which may be elsewhere, could use the file
            logger.warning("qm_vllm: a request's layers are checked without calibration: %s", error)
        return cls(base, int(text_config.num_hidden_layers))

    def request(self, given: Mapping[str, Any]) -> QuickMergeConfig:
        """The configuration of a client's request.

        Raises:
            ConfigError: an option is unknown, impossible, fixed, or not open to clients.
        """
        for name in given:
            if name in self.base.RESEARCH_FIELDS and not self.allows(name):
                raise ConfigError(
                    f"{name} is a research option that this server does not take from clients; "
                    f"its operator can allow it with --allow-options {name}"
                )
        config = self.base.override(given)
        named = LAYER_FIELDS & given.keys()
        if named and self.num_layers is not None:
            check_layers(config, self.num_layers, window="window_layers" in named)
        return config

    def allows(self, name: str) -> bool:
        """Whether the operator opened a research option to clients."""
        return not {"all", name}.isdisjoint(self.base.allow_options)
