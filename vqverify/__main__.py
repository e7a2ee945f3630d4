"""`python -m vqverify`."""

from vqverify.cli import main

main()
