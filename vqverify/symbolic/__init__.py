"""The theorems of vector quantization as executed derivations, and the oracles generated from them.

Nothing here knows the rest of the package. Importing this package imports no SymPy: the subject modules
(``householder``, ``ema``, ``gap``, ...) hold the derivations, ``oracles`` the functions lambdified from
their stated formulas, ``catalogue`` runs them all.
"""
