"""The wheel works outside the checkout, its studies included."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
UV = shutil.which("uv") or (str(ROOT / ".tools/bin/uv") if (ROOT / ".tools/bin/uv").exists() else None)


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    if UV is None:
        pytest.skip("building a wheel needs uv: make setup")
    folder = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [UV, "build", "--wheel", "-q", "-o", folder, ROOT], capture_output=True, text=True, check=False
    )
    if done.returncode and "Failed to fetch" in done.stderr:
        pytest.skip("building a wheel needs hatchling from the package index, which cannot be reached")
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_its_studies(unpacked):
    names = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*")}
    assert {"xray_opt/studies/laptop.yaml", "xray_opt/served_model.py", "xray_opt/py.typed"} <= names
    assert not any("tests" in name or "shared" in name for name in names)


@pytest.mark.slow
def test_the_wheel_runs_outside_the_checkout(unpacked, tmp_path):
    env = os.environ | {"PYTHONPATH": str(unpacked), "XRAY_OPT_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "xray_opt", "tune", "--study", "laptop"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 3
    assert "data prepare" in done.stderr
    where = [sys.executable, "-c", "import xray_opt; print(xray_opt.__file__)"]
    shown = subprocess.run(where, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert shown.stdout.startswith(str(unpacked))
