"""The packages are imported as they lie, and nobody else's take their place."""

import importlib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("access", "actors", "backbone", "cluster", "payloads", "pipelines", "schemas", "simulators")


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_is_ours(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__file__ is not None
    assert Path(module.__file__).resolve() == ROOT / name / "__init__.py"
    assert set(packages_distributions().get(name, ["pachon"])) == {"pachon"}


def test_every_folder_of_code_is_a_package() -> None:
    for name in PACKAGES:
        folders = {path.parent for path in (ROOT / name).rglob("*.py")}
        assert all((folder / "__init__.py").exists() for folder in folders), name
