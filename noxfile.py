"""Sessions that need more than the test line installs: `nox -s third_party`, `nox -s old_releases`."""

import nox

nox.options.sessions = []


@nox.session
def third_party(session: nox.Session) -> None:
    """Check the layers of properties/third_party.toml and write the conformance page; the first run downloads 200 MB."""
    session.install("-c", "constraints.txt", "-e", ".")
    session.install("--no-deps", "-r", "properties/third_party.txt")
    folder = session.create_tmp()
    session.run(
        "vqverify", "matrix", "properties/third_party.toml", "--expectations", "properties/expectations.toml",
        "--resume", f"{folder}/reports", "--json", f"{folder}/matrix.json",
        "--html", f"{folder}/matrix.html", "--markdown", f"{folder}/matrix.md", *session.posargs,
    )  # fmt: skip


@nox.session
def old_releases(session: nox.Session) -> None:
    """Find the bugs of old releases again."""
    session.install("-c", "constraints.txt", "-e", ".[test]")
    session.run("pytest", "properties/test_old_releases.py", "-m", "nightly or not nightly", *session.posargs)
