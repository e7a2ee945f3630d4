"""The report as a badge: JSON for shields.io's endpoint."""

from __future__ import annotations

import json

from vqverify.report import Report


def render(report: Report) -> str:
    """The endpoint's JSON."""
    counts = report.counts
    bad = counts["failed"] + counts["fixed"]
    colours = {0: "brightgreen", 1: "red", 2: "lightgrey", 3: "orange"}
    text = f"{counts['passed']} passed" + (f", {bad} failed" if bad else "")
    if not report.complete:
        text += ", incomplete"
    color = colours.get(report.exit_code, "lightgrey") if report.complete else "yellow"
    return json.dumps({"schemaVersion": 1, "label": "vqverify", "message": text, "color": color}) + "\n"
