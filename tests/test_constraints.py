"""The pins can be installed on every Python that the project supports."""

from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

FILE = Path(__file__).parents[1] / "constraints.txt"
PINS = [Requirement(line) for line in FILE.read_text().splitlines() if not line.startswith("#")]


def python_of(pin: Requirement) -> SpecifierSet:
    """The Pythons that the pinned release runs on, as far as it is installed here."""
    try:
        found = metadata(pin.name)
    except PackageNotFoundError:
        return SpecifierSet()
    ours = found["Version"] in pin.specifier
    return SpecifierSet((ours and found["Requires-Python"]) or "")


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_no_pin_asks_for_another_python(python):
    applied = {"python_version": python, "platform_system": "Linux"}
    pins = [pin for pin in PINS if pin.marker is None or pin.marker.evaluate(applied)]
    assert len(pins) > 50
    assert [pin.name for pin in pins if f"{python}.9" not in python_of(pin)] == []
