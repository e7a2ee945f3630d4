"""Speed and memory, as ratios within one run.

`asv run --python=same --quick`, or `python -m benchmarks.ratios` for tables.
"""
