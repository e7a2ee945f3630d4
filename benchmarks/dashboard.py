"""The dashboard: asv's pages with every script and style beside them, so that they need no network.

As an asv plugin (see asv.conf.json) this module makes `asv publish` end with :class:`Vendored`. As a command,
`python -m benchmarks.dashboard [--bench REGEX]`, it measures the current commit, publishes, and says where the pages
are. asv's index page takes jQuery, Flot, Bootstrap and three small plugins (all MIT) from public hosts; here they
come from the npm packages that `npm/package-lock.json` pins by hash, installed once below `.asv/`.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

try:
    from asv.publishing import OutputPublisher
except ImportError:  # the environments that asv measures in import every module here, and have no asv
    OutputPublisher = object

HERE = Path(__file__).parent / "npm"
SCRIPTS = {
    "jquery-": "jquery/dist/jquery.min.js",
    "jquery.flot.min": "flot/jquery.flot.js",
    "jquery.flot.time": "flot/jquery.flot.time.js",
    "jquery.flot.selection": "flot/jquery.flot.selection.js",
    "jquery.flot.categories": "flot/jquery.flot.categories.js",
    "orderBars": "flot-orderbars/js/jquery.flot.orderBars.js",
    "stupidtable": "stupid-table-plugin/stupidtable.min.js",
    "md5": "blueimp-md5/js/md5.min.js",
    "bootstrap.min.js": "bootstrap/dist/js/bootstrap.min.js",
    "bootstrap.min.css": "bootstrap/dist/css/bootstrap.min.css",
}
"""A part of the address in asv's page, and the file that stands in for it."""
REMOTE = re.compile(r'(src|href)="(https://[^"]+\.(?:js|css))"[^>]*>')


class VendorError(Exception):
    """The scripts could not be installed, or asv's page asks for one that is not known here."""


def install(folder: Path) -> Path:
    """Install the pinned npm packages below ``folder`` unless they are there; return node_modules.

    Raises:
        VendorError: if there is no npm, or it fails.
    """
    modules = folder / "node_modules"
    if all((modules / file).is_file() for file in SCRIPTS.values()):
        return modules
    npm = shutil.which("npm", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if npm is None:
        raise VendorError("npm must be on the path to install the dashboard's scripts; the extra `bench` has one")
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(HERE / name, folder / name)
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise VendorError(f"{' '.join(command)} failed: {done.stderr.strip()[-1000:]}")
    return modules


def localise(page: str) -> tuple[str, list[str]]:
    """Return asv's page with local addresses, and the files below node_modules that it needs.

    Raises:
        VendorError: if the page asks for a script that is not in :data:`SCRIPTS`.
    """
    used: list[str] = []

    def local(match: re.Match[str]) -> str:
        attribute, address = match.groups()
        name = address.rsplit("/", 1)[1]
        files = [file for part, file in SCRIPTS.items() if part in name]
        if not files:
            raise VendorError(f"asv's page asks for {address}, which {Path(__file__).name} does not know")
        used.append(files[0])
        # integrity and crossorigin go: they speak of the remote copy
        return f'{attribute}="vendor/{files[0]}">'

    return REMOTE.sub(local, page), used


class Vendored(OutputPublisher):
    """The last step of `asv publish`: scripts beside the page."""

    name, button_label, description = "vendored", "", ""

    @classmethod
    def publish(cls, conf, repo, benchmarks, graphs, revisions) -> None:
        html = Path(conf.html_dir)
        index = html / "index.html"
        page, used = localise(index.read_text("utf-8"))
        modules = install(html.parent / "npm")
        for file in used:
            target = html / "vendor" / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(modules / file, target)
            for licence in (modules / file.split("/")[0]).glob("LICENSE*"):
                shutil.copy(licence, html / "vendor" / file.split("/")[0] / licence.name)
        index.write_text(page, "utf-8")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dashboard", description=__doc__)
    parser.add_argument(
        "--bench", default=r"^(lookup|estimator)\.", help="regular expression of benchmarks; '.' for all"
    )
    parser.add_argument("--commits", default="HEAD^!", help="what to measure, as git log would take it")
    options = parser.parse_args(arguments)
    asv = [sys.executable, "-m", "asv"]
    for command in (
        ["machine", "--yes"],
        ["run", options.commits, "--bench", options.bench, "--skip-existing-successful", "--show-stderr"],
        ["publish"],
    ):
        code = subprocess.run([*asv, *command], check=False).returncode
        if code:
            print(f"asv {command[0]} ended with exit {code}", file=sys.stderr)
            return code
    print(f"The dashboard is in {Path('.asv/html').resolve()}; asv preview serves it, and it needs no network.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
