"""What the gate compares: groups by name, each with the comparer that judges it."""

TIMED = ("lookup", "estimator", "update", "layer", "stack", "metrics", "harness", "startup")
"""Modules of the benchmarks whose `gate()` names calls: less time is better."""

COUNTED = ("memory",)
"""Modules whose `gate()` names functions that return a number: less is better."""

JUDGED = ("training",)
"""Modules whose `gate()` names trainings: functions of seeds that return curves, judged pairwise over seeds."""

GROUPS = (*TIMED, *COUNTED, *JUDGED)
