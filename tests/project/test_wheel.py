"""A wheel carries every invariant and works from an empty folder."""

import subprocess
import sys
import zipfile
from pathlib import Path

from vqverify.invariant import registry

ROOT = Path(__file__).parents[2]


def test_wheel_works_from_an_empty_folder(tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    empty = tmp_path / "empty"
    empty.mkdir()
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import vqverify, vqverify.invariant\n"
        "assert vqverify.__file__.startswith(sys.argv[1]), vqverify.__file__\n"
        "print(*vqverify.invariant.registry(), sep='\\n')\n"
        "report = vqverify.check_quantizer('vqverify.reference:VectorQuantizer', {'dim': 4, 'codebook_size': 8},"
        " only=['rotation.angle'])\n"
        "assert report.exit_code == 0\n"
        "assert report.counts['passed'] == 1\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "site")], cwd=empty, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == list(registry())
    assert list(empty.iterdir()) == []
