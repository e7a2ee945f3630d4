"""The linters are part of the test line: ruff, pyright strict on the package, and the arrows between modules."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*command: str) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def tool(name: str) -> str:
    found = shutil.which(name, path=str(Path(sys.executable).parent))
    if found is None:
        pytest.fail(f"{name} is not installed beside this Python: install the extra `dev`")
    return found


def test_ruff_finds_nothing():
    run(tool("ruff"), "check", ".")


def test_ruff_would_reformat_nothing():
    run(tool("ruff"), "format", "--check", ".")


def test_pyright_finds_nothing():
    run(tool("pyright"), "--pythonpath", sys.executable)


def test_imports_run_down_only():
    run(tool("lint-imports"))
