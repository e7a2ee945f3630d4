"""A bound on memory, so that a layer that takes ever more is refused some and reported, and the machine goes on."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager

from vqverify.quantizer import Spec

if sys.platform == "linux":
    import resource


@contextmanager
def bounded(spec: Spec) -> Generator[None]:
    """Give this process half of the machine's memory meanwhile, where Linux counts it and the subject is on the CPU.

    On another device nothing is bounded: a driver may reserve more than there is.
    """
    if sys.platform != "linux" or spec.device not in {None, "cpu"}:
        yield
        return
    most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    before = resource.getrlimit(resource.RLIMIT_DATA)
    soft = min([most, *(limit for limit in before if limit != resource.RLIM_INFINITY)])
    resource.setrlimit(resource.RLIMIT_DATA, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
