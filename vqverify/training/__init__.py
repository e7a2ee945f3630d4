"""Miniature trainings, deterministic and small, and a judge of their curves.

A :class:`Recipe` says what is trained (:func:`recipes` lists them, :func:`named` finds one); :func:`train` returns a
:class:`Curve` of watched numbers (:data:`WATCHED`); :func:`judge` compares curves over seeds by one exact test.
Imports torch and :mod:`vqverify.reference`, and nothing of the harness; photographs and digits need scikit-learn, plots
matplotlib (the extra ``train``).
"""

from vqverify.training.data import MissingPackageError
from vqverify.training.judge import Judgement, Row, judge
from vqverify.training.layers import Adapted
from vqverify.training.measure import WATCHED, Watch
from vqverify.training.recipes import TASKS, Recipe, Task, UnknownRecipeError, named, recipes
from vqverify.training.run import Curve, Run, train

__all__ = [
    "TASKS",
    "WATCHED",
    "Adapted",
    "Curve",
    "Judgement",
    "MissingPackageError",
    "Recipe",
    "Row",
    "Run",
    "Task",
    "UnknownRecipeError",
    "Watch",
    "judge",
    "named",
    "recipes",
    "train",
]
