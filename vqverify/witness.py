"""One concrete failure as a small program: operations from a closed list, with their values, as JSON.

Never code, never pickle. `vqverify replay` runs it again: 0 if the statement holds now, 1 if it still fails.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from vqverify.case import Case
from vqverify.quantizer import Spec

FORMAT = 1
OPERATIONS = ("construct", "set_codebook", "train", "check")


class WitnessError(Exception):
    """A witness file that cannot be read; the message says what is wrong and what is needed."""


@dataclass(frozen=True)
class Witness:
    """A failing example of one statement on one subject.

    Attributes:
        spec: how to build the subject.
        invariant: id of the statement.
        case: initial state, history and values.
        label: which clause failed.
        message: what was found.
    """

    spec: Spec
    invariant: str
    case: Case
    label: str
    message: str

    def to_json(self) -> dict[str, Any]:
        """The witness as a program."""
        case = self.case
        program: list[dict[str, Any]] = [{"op": "construct", "seed": self.spec.seed}]
        program += [
            {"op": "set_codebook", "level": level, "values": encode(table)}
            for level, table in enumerate(case.codebook or ())
        ]
        program += [
            {"op": "train", "seed": case.seed + 1 + step, "z": encode(batch)} for step, batch in enumerate(case.history)
        ]
        program.append({"op": "check", "case": case.part, "seed": case.seed, "z": encode(case.z), "g": encode(case.g)})
        return {
            "format": FORMAT,
            "subject": asdict(self.spec),
            "invariant": self.invariant,
            "case": case.part,
            "label": self.label,
            "message": self.message,
            "operations": program,
        }

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that name the witness."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True, default=str).encode()).hexdigest()[:12]


def encode(tensor: Tensor) -> dict[str, Any]:
    """A tensor as JSON: dtype, shape and flat values; every finite number survives exactly."""
    values = [_number(value) for value in tensor.detach().to(torch.float64).flatten().tolist()]
    return {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape), "values": values}


def _number(value: float) -> float | int | str:
    if value != value or value in {float("inf"), float("-inf")}:  # noqa: PLR0124  (NaN)
        return str(value)
    return int(value) if value.is_integer() and abs(value) < 2**53 and str(value) != "-0.0" else value


def decode(data: Mapping[str, Any]) -> Tensor:
    """The inverse of `encode`.

    Raises:
        WitnessError: if the data are not those of a tensor.
    """
    try:
        dtype = getattr(torch, data["dtype"])
        values = torch.tensor([float(value) for value in data["values"]], dtype=torch.float64)
        return values.reshape(data["shape"]).to(dtype)
    except (KeyError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise WitnessError(f"a tensor needs dtype, shape and values that fit together: {error}") from None


def from_json(data: Mapping[str, Any]) -> Witness:
    """Read a witness.

    Raises:
        WitnessError: if the format is newer, an operation is not in the list, or a field is missing.
    """
    if data.get("format") != FORMAT:
        raise WitnessError(f"witness format {data.get('format')!r} is not {FORMAT}, the one that this version reads")
    try:
        spec = Spec(**data["subject"])
        codebook: list[Tensor] = []
        history: list[Tensor] = []
        check: Mapping[str, Any] | None = None
        for step in data["operations"]:
            match step.get("op"):
                case "construct":
                    pass
                case "set_codebook":
                    codebook.append(decode(step["values"]))
                case "train":
                    history.append(decode(step["z"]))
                case "check":
                    check = step
                case other:
                    raise WitnessError(f"operation {other!r} is none of {', '.join(OPERATIONS)}")
        if check is None:
            raise WitnessError("a witness needs an operation 'check'")
        found = Case(
            decode(check["z"]),
            decode(check["g"]),
            int(check["seed"]),
            tuple(codebook) or None,
            tuple(history),
            check.get("case"),
        )
        return Witness(spec, data["invariant"], found, data["label"], data.get("message", ""))
    except (KeyError, TypeError) as error:
        raise WitnessError(f"the witness lacks or misuses the field {error}") from None
