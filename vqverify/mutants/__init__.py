"""Wrong quantizers by subject, written as ordinary layers in several styles; each module lists its `MUTANTS`."""
