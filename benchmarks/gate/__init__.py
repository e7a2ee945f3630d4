"""The gate for a pull request: `python -m benchmarks.gate BASE HEAD [--group NAME]`.

Both commits are checked out, the same benchmarks (those beside this file) run against each in processes of their own,
in turns, and each case is judged by paired ratios with their measured noise. Exit 0: nothing got slower or worse; 1:
something did; 2: a benchmark failed to run, or the command line is wrong.

A group is data (cases, by name) and a comparer (`groups`); a comparer turns two commits into rows (`rows`).
"""
