"""What is installed is all of it, and its documents speak of what is there."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from setuptools import find_packages

import mt2st_fast
from tests.test_structure import LAYERS, ROOMS

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text("utf-8")


@pytest.mark.parametrize("folder", ["mt2st_fast", "kernels"])
def test_every_module_is_in_a_package(folder: str) -> None:
    """setup.py finds packages: a folder without __init__.py works in a checkout and is missing in a wheel."""
    packages = {folder, *(f"{folder}.{name}" for name in find_packages(str(ROOT / folder)))}
    modules = (ROOT / folder).rglob("*.py")
    assert {".".join(path.relative_to(ROOT).parent.parts) for path in modules} == packages


def test_every_other_file_is_said() -> None:
    found = {
        path.relative_to(ROOT / "mt2st_fast").as_posix()
        for folder in ("mt2st_fast", "kernels")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts
    }
    assert found == set(PROJECT["tool"]["setuptools"]["package-data"]["mt2st_fast"])


def test_the_version_stands_in_one_place() -> None:
    assert version("mt2st-fast") == mt2st_fast.__version__
    assert "version" not in PROJECT["project"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "mt2st_fast.__version__"}


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`([\w./]+/[\w./]*)`", CONTRIBUTING))))
def test_the_map_shows_what_is_there(path: str) -> None:
    if path in ("on_NAME/", "on_numba/", "on_triton/"):  # in the package of an op
        path = "kernels/heads/on_numba/"
    assert (ROOT / path).is_dir() if path.endswith("/") else (ROOT / path).is_file()


def test_the_map_names_every_package_of_the_training_in_order() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", CONTRIBUTING, re.MULTILINE)
    assert tuple(rows) == ROOMS


def test_the_map_names_every_package_of_kernels() -> None:
    named = CONTRIBUTING[
        CONTRIBUTING.index("divided into packages") : CONTRIBUTING.index("Tests enforce this")
    ]
    assert all(f"`{package}`" in named for package in LAYERS)
