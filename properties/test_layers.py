"""Every invariant on every layer of subjects.toml, under quick."""

from subjects import Subject, subjects

from vqverify import parametrize_with_invariants


def bind(subject: Subject):
    @parametrize_with_invariants(
        subject.target,
        subject.kwargs,
        applies=subject.applies,
        expectations=subject.expectations,
    )
    def test(check):
        check()

    return test


for subject in subjects():
    globals()[f"test_{subject.name.replace('-', '_')}"] = bind(subject)
