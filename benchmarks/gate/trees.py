"""Two commits checked out side by side in a temporary folder, and the benchmarks beside them."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1]


class RevisionError(Exception):
    """A revision that is no commit of this repository."""


@dataclass(frozen=True)
class Tree:
    """A checked-out commit: ``side`` is "base" or "head"; ``run`` holds the benchmarks and nothing else."""

    side: str
    commit: str
    folder: Path
    run: Path


def resolve(revision: str, repository: Path) -> str:
    """Return the full hash of a revision.

    Raises:
        RevisionError: if there is no such commit, or no repository.
    """
    done = _git(repository, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if done.returncode:
        raise RevisionError(f"{revision!r} must name a commit of the repository in {repository}; git knows none")
    return done.stdout.strip()


@contextlib.contextmanager
def checkouts(base: str, head: str, repository: Path) -> Iterator[tuple[Tree, Tree]]:
    """Check both commits out, and copy the benchmarks, so that nothing edited meanwhile is measured.

    Raises:
        RevisionError: if one of them is no commit.
    """
    commits = {"base": resolve(base, repository), "head": resolve(head, repository)}
    with tempfile.TemporaryDirectory(prefix="gate-") as name:
        root = Path(name)
        # paths of one length: their strings end up in the processes that are compared
        run = root / "bench"
        shutil.copytree(BENCHMARKS, run / "benchmarks", ignore=shutil.ignore_patterns("__pycache__"))
        try:
            for side, commit in commits.items():
                done = _git(repository, "worktree", "add", "--detach", "--force", str(root / side), commit)
                if done.returncode:
                    raise RevisionError(f"git could not check out {commit}: {done.stderr.strip()}")
            base_tree, head_tree = (Tree(side, commit, root / side, run) for side, commit in commits.items())
            yield base_tree, head_tree
        finally:
            for side in commits:
                _git(repository, "worktree", "remove", "--force", str(root / side))
            _git(repository, "worktree", "prune")


def _git(repository: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *arguments], cwd=repository, capture_output=True, text=True, check=False)
