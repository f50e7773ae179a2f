"""The start-up checks: the installed vLLM fits, and a name is found wherever a class holds it."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from qm_vllm_patches import checks, symbols


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
