"""The start-up checks: the installed vLLM fits, and a name is found wherever a class holds it."""

from __future__ import annotations

import inspect
import logging
from dataclasses import dataclass, field

import pytest

from qm_vllm_patches import checks, symbols
from qm_vllm_patches.settings import CacheFacts
from tests.settings import facts, settings


def test_the_installed_vllm_fits():
    assert [finding for finding in checks.check() if not finding.ok] == []
    checks.require()


class Base:
    inherited: int

    def __init__(self):
        self.set_by_the_base = 1


@dataclass
class Settings(Base):
    annotated: int
    with_factory: list[int] = field(default_factory=list)
    constant = 3

    def __post_init__(self):
        self.set_after_init = self.annotated

    def prepare(self):
        self.set_later = 1

    @property
    def computed(self):
        return 1


class Slotted:
    __slots__ = ("slot",)


@pytest.mark.parametrize(
    "name",
    [
        "inherited", "set_by_the_base", "annotated", "with_factory", "constant", "set_after_init",
        "set_later", "prepare", "computed",
    ],
)
def test_a_name_is_found_wherever_a_class_holds_it(name):
    assert name in checks._members(Settings)


def test_slots_are_found_and_others_are_not():
    assert "slot" in checks._members(Slotted)
    assert "nowhere" not in checks._members(Slotted) | checks._members(Settings)


def test_an_attribute_that_is_gone_is_a_finding(monkeypatch):
    monkeypatch.setitem(
        symbols.ATTRIBUTES, "ModelConfig", (*symbols.ATTRIBUTES["ModelConfig"], "gone_for_good")
    )
    bad = [finding for finding in checks.check() if not finding.ok]
    assert [(finding.name, finding.detail) for finding in bad] == [
        ("ModelConfig", "lacks gone_for_good")
    ]
    with pytest.raises(RuntimeError, match="ModelConfig: lacks gone_for_good"):
        checks.require()


def test_a_parameter_that_is_new_keeps_the_first_token_with_its_request():
    """Every parameter of vLLM that is not known to be harmless, at a value of its own."""
    from vllm import SamplingParams

    from qm_vllm_patches.first_token import FREE, can_be_given

    plain = SamplingParams(max_tokens=4)
    assert can_be_given(plain)
    for name in set(SamplingParams.__struct_fields__) - FREE:
        changed = plain.clone()
        setattr(changed, name, [[1, 2]] if name.startswith("_bad") else 3)
        assert not can_be_given(changed), name
    assert not can_be_given(None)
    assert not can_be_given(SamplingParams(max_tokens=1))


def test_a_request_that_goes_on_behind_a_token_is_like_one_that_began_so():
    from qm_vllm_patches.requests import self_check

    assert self_check() is None


@pytest.fixture
def of_version(monkeypatch):
    """``of_version("0.99.1")``: the installed vLLM says that it is this one."""
    import vllm

    return lambda text: monkeypatch.setattr(vllm, "__version__", text)


@pytest.mark.parametrize("text", ["0.30.2", "0.31.0", "0.32.1+cpu", "0.33.0", "0.34.0.dev3+gabc"])
def test_versions_in_the_range_fit_older_ones_do_not_newer_ones_have_to_pass_all_checks(
    of_version, caplog, monkeypatch, text
):
    monkeypatch.setattr(checks, "logger", logging.getLogger("plain"))
    of_version(text)
    minor = int(text.split(".")[1])
    if minor == 30:
        with pytest.raises(RuntimeError, match=r"does not fit \(vLLM version: 0\.30\.2\)"):
            checks.require()
        return
    checks.require()
    warned = [record.getMessage() for record in caplog.records if record.name == "plain"]
    assert len(warned) == (minor == 34)
    if minor == 34:
        assert "tried with vLLM 0.31 up to, not including, 0.34, and this is 0.34.0" in warned[0]
        with pytest.raises(RuntimeError, match=r"vLLM version: 0\.34\.0\.dev3"):
            checks.require(strict=True)
        monkeypatch.setitem(symbols.HOOKS, "get_finished", 2)
        with pytest.raises(RuntimeError, match="hook get_finished"):
            checks.require()
    else:
        checks.require(strict=True)


def test_what_is_overridden_takes_all_that_vllm_passes():
    """A method of vLLM's scheduler that has more arguments one day is called with them."""
    from vllm.v1.core.sched.scheduler import Scheduler

    from qm_vllm_patches.scheduler import ShadowScheduler

    names = {name for name in vars(ShadowScheduler) if hasattr(Scheduler, name)}
    own = names - {name for name in names if name.startswith("__")}
    assert {"schedule", "_get_local_prefix_cache_hit"} <= own
    for name in own:
        theirs = inspect.signature(getattr(Scheduler, name)).parameters
        inspect.signature(getattr(ShadowScheduler, name)).bind(*theirs)


def test_the_option_of_an_engine_decides_on_newer_versions(monkeypatch):
    from qm_vllm.engine import connector

    asked = []
    monkeypatch.setattr(checks, "require", lambda *, strict: asked.append(strict))
    monkeypatch.setattr(connector, "read_facts", lambda settings, cache, share: facts())
    for strict in (False, True):
        options = {"quickmerge": {"strict_version": strict}}
        made = object.__new__(connector.QuickMergeConnector)
        made.make_scheduler_side(settings(options=options), CacheFacts(1, 1))
    assert asked == [False, True]
