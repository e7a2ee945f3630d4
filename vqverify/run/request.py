"""What a door asks for, as a value."""

from __future__ import annotations

import secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vqverify import examples
from vqverify.quantizer import Spec


class RequestError(Exception):
    """A request that makes no sense; the message says what was given and what is needed."""


@dataclass(frozen=True)
class Request:
    """What a door asks for: plain data.

    Attributes:
        spec: the subject.
        profile: quick, merge or nightly.
        only, skip: shell patterns of row ids.
        require: patterns of rows that must apply and pass.
        fail_on: kinds whose failures fail the run.
        strict: undetermined rows fail the run.
        budget: seconds; rows not reached by then are undetermined.
        expectations: file of expected failures.
        jobs: worker processes that open the subject anew; 1 runs in this one.
        forks: copies of this process that share the rows, where the system allows it.
        timeout: seconds that one row may take; rows then run in a process of their own.
    """

    spec: Spec
    profile: str = "quick"
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    require: tuple[str, ...] = ()
    fail_on: tuple[str, ...] = ("law", "contract")
    strict: bool = False
    budget: float | None = None
    expectations: Path | None = None
    jobs: int = 1
    forks: int = 1
    timeout: float | None = None

    @property
    def isolated(self) -> bool:
        """Whether rows run in processes of their own."""
        return self.jobs > 1 or self.timeout is not None

    def described(self) -> dict[str, Any]:
        """What the report keeps of it: two runs with the same description make the same rows."""
        profile = profile_called(self.profile)
        return {
            **asdict(profile),
            "seed": self.spec.seed,
            "only": list(self.only),
            "skip": list(self.skip),
            "require": list(self.require),
            "fail_on": list(self.fail_on),
            "strict": self.strict,
        }


def profile_called(name: str) -> examples.Profile:
    """The profile of that name.

    Raises:
        RequestError: if there is none.
    """
    if name not in examples.PROFILES:
        raise RequestError(f"no profile is called {name!r}; there are {', '.join(examples.PROFILES)}")
    return examples.PROFILES[name]


def seed_for(profile: str, given: int | None) -> int:
    """The seed of a run: the given one, else 0, else (nightly) one drawn anew, which the report prints."""
    if given is not None:
        return given
    return 0 if profile_called(profile).fixed else secrets.randbelow(2**31)
