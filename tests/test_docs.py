"""The docs say what is: the file map exists, the commands exist, the command page is current."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from xray_opt.cli import COMMANDS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_command_page_is_current():
    # In a process of its own: click keeps the help option of whoever asked a command first.
    command = [sys.executable, str(ROOT / "scripts" / "cli_docs.py"), "-"]
    page = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert (ROOT / "docs" / "cli.md").read_text() == page, "run: python scripts/cli_docs.py"


def test_every_place_of_the_file_map_exists():
    rows = [line.split("|")[1] for line in README.split("## File map")[1].splitlines() if line.startswith("| `")]
    places = [place for row in rows for place in re.findall(r"`([^`]+)`", row)]
    assert len(places) > 20
    for place in places:
        assert (ROOT / place).exists() or (ROOT / "xray_opt" / place).exists(), place


def test_every_room_stands_in_the_file_map():
    for path in sorted((ROOT / "xray_opt").iterdir()):
        if path.name.startswith("_") or path.suffix == ".typed":
            continue
        assert re.search(rf"`(xray_opt/)?{re.escape(path.name)}/?`", README), path.name


def test_every_command_in_the_docs_exists():
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "studies").glob("*.yaml"))):
        for command in re.findall(r"^\s*#?\s*(?:\.venv/bin/)?xray-opt ([a-z-]+)", page.read_text(), flags=re.MULTILINE):
            assert command in COMMANDS, f"{page.name}: xray-opt {command}"


def test_every_link_inside_the_repository_leads_somewhere():
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_make_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make ([a-z-]+)", README):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_every_test_that_a_promise_names_exists():
    page = (ROOT / "docs" / "reliability.md").read_text()
    named = re.findall(r"`(tests/\w+\.py)::(\w+)`", page)
    assert len(named) > 30
    for file, test in named:
        assert re.search(rf"^def {test}\(", (ROOT / file).read_text(), flags=re.MULTILINE), f"{file}::{test}"
    tables = re.findall(r"^\| (\w+)[^\n]* \|\n\| ---[^\n]*\n((?:\|[^\n]*\n)+)", page, flags=re.MULTILINE)
    assert {head for head, _ in tables} == {"promise", "what", "run"}  # of "run" are what the harness gave, no promises
    for line in "".join(rows for head, rows in tables if head != "run").splitlines():
        assert "::test_" in line, line


def test_the_changelog_has_an_open_section():
    assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("name", ["data/README.md", "studies/laptop.yaml", "studies/README.md", "mlruns/README.md"])
def test_what_must_be_kept_in_git_is_not_ignored(name):
    done = subprocess.run(["git", "check-ignore", "-q", name], cwd=ROOT, check=False)
    if done.returncode == 128:
        pytest.skip("not a git checkout")
    assert done.returncode == 1


@pytest.mark.parametrize(
    "name", ["studies/optuna.db", "mlruns/mlflow.db", "data/chest_xray/a.jpeg", "data/salt", ".env"]
)
def test_what_must_not_be_kept_in_git_is_ignored(name):
    done = subprocess.run(["git", "check-ignore", "-q", name], cwd=ROOT, check=False)
    if done.returncode == 128:
        pytest.skip("not a git checkout")
    assert done.returncode == 0
