"""What the documents say exists, exists."""

import importlib
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.cli import app
from simulators.faults import LIBRARY

ROOT = Path(__file__).parents[1]
PACKAGES = ("access", "actors", "backbone", "cluster", "payloads", "pipelines", "schemas", "simulators")
NAMES = sorted(
    set(
        re.findall(
            rf"`((?:{'|'.join(PACKAGES)})(?:\.\w+)+)`",
            "".join(page.read_text("utf-8") for page in sorted((ROOT / "docs").rglob("*.md"))),
        )
    )
)
COMMANDS = (
    "night", "alerts", "archived-alerts", "difference", "replay-alerts", "withdraw", "precover", "status", "visit",
    "dead-letters", "dead-letters --kafka x show", "dead-letters --kafka x resubmit",
    "calibrate", "afternoon", "drp", "templates",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_every_name_in_the_architecture_exists(name: str) -> None:
    parts = name.split(".")
    for split in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:split]))
        except ModuleNotFoundError:
            continue
        for part in parts[split:]:
            found = getattr(found, part)
        return
    pytest.fail(f"{name} is nowhere")


def test_the_architecture_names_the_functions_of_a_visit() -> None:
    assert len(NAMES) > 30


def test_links_in_the_documents_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_option_that_the_documents_show_is_one() -> None:
    shown = set()
    for page in [ROOT / "README.md", ROOT / "docs/operations.md"]:
        shown |= set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", page.read_text("utf-8")))
    help_text = "".join(
        CliRunner().invoke(app, [*command.split(), "--help"], env={"COLUMNS": "300"}).output for command in COMMANDS
    )
    assert {option for option in shown if option not in help_text} == set()


def test_every_folder_of_the_table_is_there() -> None:
    for folder in re.findall(r"^\| `(\w+)/` \|", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE):
        assert (ROOT / folder).is_dir()


def test_the_table_of_faults_is_the_library() -> None:
    page = (ROOT / "docs/faults.md").read_text("utf-8")
    rows = re.findall(r"^\| `([\w-]+)` \| ([^|]+) \| [^|]+ \|$", page, re.MULTILINE)
    assert rows == [(name, fault.what) for name, fault in LIBRARY.items()]
