"""From the words on a command line to a class, and from a class and kwargs to a module."""

from __future__ import annotations

import ast
import contextlib
import difflib
import importlib
import importlib.metadata
import importlib.util
import inspect
import io
import sys
import warnings
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from vqverify.subject.randomness import forked

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import ModuleType


class TargetError(Exception):
    """The target cannot be made into a layer; the message is one sentence for the user."""


def load(target: str) -> Any:
    """Import what a target names.

    Args:
        target: `pkg.mod:Class`, `./file.py:Class`, or a factory or function in their place.

    Returns:
        The class, factory or function.

    Raises:
        TargetError: if the form is wrong, an import fails, or there is no such name.
    """
    place, colon, name = target.rpartition(":")
    if not (colon and place and name):
        raise TargetError(
            f"target {target!r} has no class: write package.module:Class or ./file.py:Class{_classes(target)}"
        )
    module = _from_file(place) if place.endswith(".py") else _from_package(place)
    found: Any = module
    for part in name.split("."):
        try:
            found = _quietly(lambda owner=found, part=part: getattr(owner, part))
        except AttributeError:
            near = suggest(part, (known for known in vars(found) if not known.startswith("_")))
            raise TargetError(f"{place} has no {part!r}{near}") from None
        except Exception as error:  # a module may import what it names when it is asked for it
            raise TargetError(f"{target} cannot be imported: {_one_line(error)}") from error
    if not callable(found):
        raise TargetError(f"{target} is {_a(found)}; a class or a function is needed")
    return found


def construct(factory: Any, kwargs: Mapping[str, Any], seed: int) -> nn.Module:
    """Build the module, with every global generator forked and seeded.

    Args:
        factory: class or function that returns a `torch.nn.Module`.
        kwargs: its keyword arguments.
        seed: of the global generators during construction.

    Raises:
        TargetError: if the arguments do not fit, construction raises, or it gives no module.
    """
    name = getattr(factory, "__name__", type(factory).__name__)
    check_arguments(factory, kwargs)
    shown = ", ".join(f"{key}={value!r}" for key, value in kwargs.items())
    try:
        with forked(seed), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            module = factory(**kwargs)
    except (Exception, SystemExit) as error:
        raise TargetError(f"{name}({shown}) cannot be built: {_one_line(error)}") from error
    if not isinstance(module, nn.Module):
        raise TargetError(f"{name}({shown}) gave {_a(module)}; a torch.nn.Module is needed")
    return module


def check_arguments(factory: Any, kwargs: Mapping[str, Any]) -> None:
    """Compare kwargs with a signature before anything is built.

    Raises:
        TargetError: for a kwarg that is not there, or a missing one.
    """
    name = getattr(factory, "__name__", type(factory).__name__)
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return
    named = {
        key: value
        for key, value in parameters.items()
        if value.kind in {value.POSITIONAL_OR_KEYWORD, value.KEYWORD_ONLY}
    }
    if not any(value.kind is value.VAR_KEYWORD for value in parameters.values()):
        for key in kwargs:
            if key not in named:
                raise TargetError(f"{name} has no argument {key!r}{suggest(key, named)}")
    missing = [key for key, value in named.items() if value.default is value.empty and key not in kwargs]
    if missing and inspect.isfunction(factory) and len(missing) == 2 and not kwargs:
        raise TargetError(
            f"{name} is a function of {' and '.join(missing)}: add --as estimator if it makes z_q of latents and codes, "
            "--as lookup if it makes codes of latents and a codebook"
        )
    if missing:
        some = " ".join(f"--kw {key}=..." for key in missing)
        raise TargetError(f"{name} needs {', '.join(map(repr, missing))}: add {some}")


def package_of(factory: Any) -> tuple[str, str] | None:
    """Name and version of the distribution that a class comes from; None for a local file."""
    top = getattr(factory, "__module__", "").partition(".")[0]
    if top == "vqverify":
        from vqverify._version import __version__

        return "vqverify", __version__
    if not top or top not in sys.modules or not hasattr(sys.modules[top], "__path__"):
        return None
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return _distribution(top.replace("_", "-"))
    # the slow way: the name of a package need not be the name that pip knows
    names = importlib.metadata.packages_distributions().get(top)
    return _distribution(names[0]) if names else None


def suggest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, `; there are 'a', 'b'`, or nothing."""
    names = sorted(set(known))
    near = difflib.get_close_matches(word, names, n=3, cutoff=0.5)
    if near:
        return f"; did you mean {' or '.join(map(repr, near))}?"
    return f"; there are {', '.join(map(repr, names[:20]))}" if names else ""


def _classes(place: str) -> str:
    """The public classes and functions that a file defines, to be suggested; it is not run."""
    try:
        tree = ast.parse(Path(place).read_text("utf-8"))
    except (OSError, ValueError, SyntaxError):
        return ""
    names = [node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    return suggest("", (name for name in names if not name.startswith("_")))


def _distribution(name: str) -> tuple[str, str]:
    found = importlib.metadata.distribution(name)
    return found.metadata["Name"], found.version


def _from_file(place: str) -> ModuleType:
    path = Path(place).resolve()
    if not path.is_file():
        near = suggest(path.name, (entry.name for entry in path.parent.glob("*.py")) if path.parent.is_dir() else ())
        raise TargetError(f"there is no file {place}{near}")
    name = f"{path.stem}_{zlib.crc32(str(path).encode()):08x}"  # the same in every process
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    sys.path.append(str(path.parent))  # neighbours that the file imports
    try:
        _quietly(lambda: spec.loader.exec_module(module))  # pyright: ignore[reportOptionalMemberAccess]
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        sys.path.remove(str(path.parent))
        raise TargetError(f"{place} cannot be imported: {_one_line(error)}") from error
    return module


def _from_package(place: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)  # a console script does not look into the working directory by itself
    try:
        return _quietly(lambda: importlib.import_module(place))
    except ModuleNotFoundError as error:
        missing = error.name or place
        if missing == place.partition(".")[0]:
            close = difflib.get_close_matches(missing, importlib.metadata.packages_distributions(), n=1, cutoff=0.8)
            near = f"; did you mean {close[0]!r}?" if close else "; is it installed?"
            raise TargetError(f"{place} cannot be imported: there is no module {missing!r}{near}") from error
        if place.startswith(f"{missing}.") or place == missing:
            parent = missing.rpartition(".")[0]
            raise TargetError(f"{parent} has no module {missing.rpartition('.')[2]!r}{_siblings(missing)}") from error
        raise TargetError(f"{place} cannot be imported: it needs the module {missing!r}") from error
    except (Exception, SystemExit) as error:
        raise TargetError(f"{place} cannot be imported: {_one_line(error)}") from error


def _siblings(name: str) -> str:
    import pkgutil

    parent, _, word = name.rpartition(".")
    return suggest(
        word, (found.name for found in pkgutil.iter_modules(getattr(sys.modules.get(parent), "__path__", [])))
    )


def _quietly(load_it: Any) -> Any:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        return load_it()


def _one_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}"[:300] if text else type(error).__name__


def _a(value: object) -> str:
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
