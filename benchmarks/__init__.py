"""Speed and memory of the reference quantizers and of the harness, and a gate for pull requests.

`python -m benchmarks.dashboard` runs and publishes asv's pages, `python -m benchmarks.gate BASE HEAD` compares two
commits, `python -m benchmarks.ratios` prints tables. A module here is a group: cases, what each is compared with
(`work`), the asv class that shows it and the smaller cases that the gate times (`gate`).
"""
