"""What is declared of an option, once: its check, its help, who may set it, how it travels.

Validation, the fields that a request may name, the texts of HTTP requests, the flags of the
commands and the tables of the README are all derived from the declarations, which stand in
:class:`~qm_vllm.config.QuickMergeConfig`.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from qm_vllm.option_checks import ConfigError

Check = Callable[[str, Any], Any]
"""From an option's name and a value to the value in its proper type, or ConfigError."""

KEY = "option"
"""Of a dataclass field's metadata."""


class Setter(enum.Enum):
    """Who may set an option, beside whoever starts the engine."""

    ENGINE = enum.auto()
    """Nobody else."""
    REQUEST = enum.auto()
    """Every request."""
    RESEARCH = enum.auto()
    """Every request of this process; a request over HTTP where the server allows it."""


class Form(enum.Enum):
    """How a value is written as one scalar, in ``vllm_xargs`` and as a flag's argument."""

    SCALAR = enum.auto()
    JSON = enum.auto()
    """A JSON list as text."""
    NAMES = enum.auto()
    """Names with commas, "none" for no name."""


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
        default: the value where nobody sets it. None as a default means that it may be unset.
        help: one sentence for the command line and the README, without its full stop.
        by: who may set it. changes_result: whether the kept tokens, their KV or the report can
            depend on it.
        shown: its default for people, where ``default`` does not say it.
        flags: of the command line, where they are not the name's own.
    """

    name: str
    default: Any
    check: Check
    help: str
    by: Setter
    form: Form
    changes_result: bool
    shown: str | None
    flags: str | None

    def checked(self, value: Any) -> Any:
        """The value in its proper type.

        Raises:
            ConfigError: it is impossible; the message says what is allowed.
        """
        if value is None and self.default is None:
            return None
        return self.check(self.name, value)

    def as_text(self, value: Any) -> Any:
        """The value as a scalar that JSON and an HTTP request can carry."""
        if self.form is Form.JSON:
            return json.dumps(value)
        if self.form is Form.NAMES and not isinstance(value, str):
            return ",".join(value) or "none"
        return value

    def from_text(self, label: str, value: Any) -> Any:
        """The inverse of :meth:`as_text`, unchecked; what is no text stays as it is.

        Args:
            label: the option's name where the text was found.

        Raises:
            ConfigError: it should be JSON and is not.
        """
        if self.form is not Form.JSON or not isinstance(value, str):
            return value  # the check reads names with commas itself
        try:
            return json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{label}={value!r} is not a JSON list") from error

    @property
    def default_text(self) -> str:
        """Its default for people; empty where it is unset or holds nothing."""
        if self.shown is not None:
            return self.shown
        if self.default is None or self.default == ():
            return ""
        if isinstance(self.default, float):
            return f"{self.default:g}"
        return str(self.default).lower() if isinstance(self.default, bool) else str(self.default)


def option(
    default: Any,
    *,
    check: Check,
    help: str,
    by: Setter = Setter.ENGINE,
    form: Form = Form.SCALAR,
    changes_result: bool = True,
    shown: str | None = None,
    flags: str | None = None,
) -> Any:
    """A dataclass field that is an option; the arguments are :class:`Option`'s attributes."""
    declared = Option("", default, check, help, by, form, changes_result, shown, flags)
    return dataclasses.field(default=default, metadata={KEY: declared})


def declared_options(of: Any) -> dict[str, Option]:
    """All options of a dataclass by name, in the order of their declarations."""
    return {
        field.name: dataclasses.replace(field.metadata[KEY], name=field.name)
        for field in dataclasses.fields(of)
    }


def plain(of: Any) -> dict[str, Any]:
    """The options of a dataclass in plain JSON types, by name."""
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(of)))
    return values


def fingerprint(values: Mapping[str, Any], options: Mapping[str, Option]) -> str:
    """Hash of the plain values of all options that can change a result."""
    counted = {name: value for name, value in values.items() if options[name].changes_result}
    return hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()


def known(values: Mapping[str, Any], names: Collection[str]) -> Mapping[str, Any]:
    """The values, if there is an option of each of their names.

    Raises:
        ConfigError: there is none; the message has the names that there are.
    """
    for name in values:
        if name not in names:
            raise ConfigError(f"{name!r} is not an option; allowed: {', '.join(sorted(names))}")
    return values


def names_of(options: Mapping[str, Option], *setters: Setter) -> frozenset[str]:
    """Options that any of these may set."""
    return frozenset(name for name, one in options.items() if one.by in setters)


def named_by_request(
    values: Mapping[str, Any], options: Mapping[str, Option]
) -> Mapping[str, Any]:
    """The values, if a request may set each of them.

    Raises:
        ConfigError: a name is unknown, or fixed when the engine starts.
    """
    for name in values:
        if name in options and options[name].by is Setter.ENGINE:
            raise ConfigError(f"{name} is fixed when the engine starts; leave it out")
    return known(values, names_of(options, Setter.REQUEST, Setter.RESEARCH))
