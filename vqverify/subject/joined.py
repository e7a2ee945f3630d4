"""One of several processes (`vqverify.subject.processes`): `python -m vqverify.subject.joined JOB RANK`.

The layer is built inside the process group, as a user of distributed training builds it.
"""

from __future__ import annotations

import pickle
import sys
from datetime import timedelta
from importlib import import_module
from pathlib import Path

import torch
from torch import distributed

from vqverify.subject import make_factory
from vqverify.subject.layer import Layer
from vqverify.subject.processes import CANNOT_OPEN
from vqverify.subject.target import TargetError, load


def main(job: Path, rank: int) -> int:
    """One process: join the group, build the layer, do the work, write what it gives."""
    torch.set_num_threads(1)
    spec, plan, domain, work, arguments, count = pickle.loads(job.read_bytes())  # noqa: S301
    module, _, name = work.partition(":")
    distributed.init_process_group(
        "gloo", init_method=f"file://{job.parent / 'store'}", rank=rank, world_size=count, timeout=timedelta(seconds=30)
    )
    try:
        try:
            factory = make_factory(spec, load(spec.target))
            built = factory({}, spec.seed)
        except TargetError as error:
            print(error, file=sys.stderr)
            return CANNOT_OPEN
        layer = Layer(spec, plan, built, domain, factory)
        result = getattr(import_module(module), name)(layer, rank, arguments)
        (job.parent / f"result{rank}").write_bytes(pickle.dumps(result))
    finally:
        distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
