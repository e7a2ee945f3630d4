"""Every invariant on every layer of subjects.toml: under quick, and all of them under merge for the references at night."""

import pytest
from subjects import Subject, subjects

from vqverify import parametrize_with_invariants


def bind(subject: Subject, profile: str):
    @parametrize_with_invariants(
        subject.target,
        subject.kwargs,
        profile=profile,
        only=subject.only if profile == "quick" else (),
        applies=subject.applies,
        expectations=subject.expectations,
    )
    def test(check):
        check()

    return test


for subject in subjects():
    name = subject.name.replace("-", "_")
    globals()[f"test_{name}"] = bind(subject, "quick")
    if subject.expectations is None:
        globals()[f"test_{name}_merge"] = pytest.mark.nightly(bind(subject, "merge"))
