"""Finding code space inside a pass: the operations are recorded, and the levels located in the record.

q_c is the code as the estimator returns it, z_c the last *cut* of the graph before the code was first made:
every gradient from q_c to z passes through it. Neither is found by the nearest-code property, which is
under test (an argmax lookup has a z_c as well).
"""

from vqverify.subject.capture.locate import COARSE, is_plain, locate
from vqverify.subject.capture.places import Located, Position, Reading, gradient, node, pull, read, readings, steps
from vqverify.subject.capture.record import Recorder

__all__ = [
    "COARSE",
    "Located",
    "Position",
    "Reading",
    "Recorder",
    "gradient",
    "is_plain",
    "locate",
    "node",
    "pull",
    "read",
    "readings",
    "steps",
]
