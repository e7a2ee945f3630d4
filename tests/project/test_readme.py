"""What the README promises in words is what runs."""

import re
import subprocess
from pathlib import Path

import vqverify
from vqverify.invariant import registry

ROOT = Path(__file__).parents[2]


def test_ci_runs_the_test_line_of_the_readme():
    lines = [line for line in (ROOT / "README.md").read_text("utf-8").splitlines() if "python -m pytest" in line]
    assert len(lines) == 1
    script = (ROOT / ".ci/run").read_text("utf-8")
    assert "grep -m1 'python -m pytest' README.md" in script


def test_no_machine_paths_or_registry_hosts_are_committed():
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    banned = re.compile(r"/(?:work|root|home)/\w|pypi\.org|files\.pythonhosted|download\.pytorch")
    found = []
    for name in filter(None, files):
        path = ROOT / name
        if (
            path.suffix in {".py", ".md", ".toml", ".json", ".txt", ".j2", ".js"}
            and path.exists()
            and path != Path(__file__)
        ):
            found += [f"{name}: {line}" for line in path.read_text("utf-8").splitlines() if banned.search(line)]
    assert not found


def test_every_id_that_the_documents_name_exists():
    known = set(registry())
    for name in ("README.md", "CONTRIBUTING.md", "ARCHITECTURE.md"):
        text = (ROOT / name).read_text("utf-8")
        groups = "|".join({id_.partition(".")[0] for id_ in known})
        named = set(re.findall(rf"\b(?:{groups})\.[a-z_]+\b", text)) - {"estimator.twice"}
        ids = {id_ for id_ in named if not id_.endswith((".py", ".md"))}
        assert {id_ for id_ in ids if f"`{id_}`" in text} <= known


def test_public_names_are_importable():
    for name in vqverify.__all__:
        assert getattr(vqverify, name) is not None
