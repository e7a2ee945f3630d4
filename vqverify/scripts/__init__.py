"""Witnesses as standalone scripts, for those who have torch and the library and not this harness.

`registry` knows how the failures of each row are written (a module a subject beside it), `scene` how the layer is
built, called and read, `compose` puts both together, `checked` sees the script fail in a fresh process.
"""

from vqverify.scripts.checked import Script
from vqverify.scripts.scene import Unscripted

__all__ = ["Script", "Unscripted"]
