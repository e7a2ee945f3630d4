"""A layer inside a user's own model: an MLP VQ-VAE, trained by hand for a few steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from vqverify.cli import group
from vqverify.quantizer import Spec
from vqverify.strategies import frame, mass
from vqverify.subject import open_subject
from vqverify.subject.target import TargetError

DIM, CODES = 4, 8
TARGET = f"{__name__}:Autoencoder"


class Codebook(nn.Module):
    """Straight-through, with the usual two losses."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(CODES, DIM))

    def forward(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        codes = torch.cdist(z, self.table).argmin(-1)
        q = self.table[codes]
        loss = (q - z.detach()).square().mean() + 0.25 * (z - q.detach()).square().mean()
        return z + (q - z).detach(), codes, loss


class Encoder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, DIM))
        self.vq = Codebook()


class Autoencoder(nn.Module):
    def __init__(self, width: int = 16, decay: float = 0.5) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(width), nn.Linear(DIM, 6)
        self.dropout = nn.Dropout(1 - decay)  # a name of the field's, of another thing than the codebook

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z_q, _, loss = self.encoder.vq(self.encoder.net(x))
        return (self.decoder(self.dropout(z_q)) - x).square().mean() + loss


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(3)
    model, x = Autoencoder(), torch.randn(64, 6)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        model(x).backward()
        optimizer.step()
    torch.save({"epoch": 1, "model": {f"module.{k}": v for k, v in model.state_dict().items()}}, folder / "ckpt.pt")
    np.save(folder / "z.npy", model.encoder.net(x).detach().numpy())
    torch.save(model.encoder.vq.table.detach(), folder / "table.pt")
    return folder


def spec(folder: Path, **more: str) -> Spec:
    return Spec(TARGET, submodule="encoder.vq", state=str(folder / "ckpt.pt"), **more)  # type: ignore[arg-type]


def test_trained_state_is_checked(trained: Path) -> None:
    layer = open_subject(spec(trained))
    (codebook,) = layer.codebooks()
    assert torch.equal(codebook, torch.load(trained / "table.pt"))
    assert torch.equal(layer.build(seed=7).codebooks()[0], codebook)
    assert layer.traits["estimator"].value == "straight-through"
    assert layer.traits["commitment_weight"].value == pytest.approx(0.25, rel=1e-3)
    assert not layer.claims  # `decay` is the model's argument, not the layer's
    assert not layer.arguments


def test_latents_in_use_are_drawn(trained: Path) -> None:
    layer = open_subject(spec(trained, latents=str(trained / "z.npy")))
    real = {tuple(row) for row in np.load(trained / "z.npy").tolist()}
    batches = [case.z for case in mass(frame(layer), "fresh")]
    from_use = [all(tuple(row) in real for row in z.tolist()) for z in batches]
    assert any(from_use)
    assert not all(from_use)


def test_commands_take_it(trained: Path) -> None:
    words = [
        TARGET,
        "--submodule",
        "encoder.vq",
        "--state",
        str(trained / "ckpt.pt"),
        "--latents",
        str(trained / "z.npy"),
    ]
    found = CliRunner().invoke(group, ["identify", *words])
    assert found.exit_code == 0, found.output
    assert "straight-through" in found.output
    checked = CliRunner().invoke(
        group, ["check", *words, "--only", "lookup.*", "--only", "estimator.*"], standalone_mode=False
    )
    assert checked.return_value == 0, checked.output


BAD = [
    ({"submodule": "encoder.vw"}, "no module 'encoder.vw'; did you mean 'encoder.vq'"),
    ({"state": "none.pt"}, "none.pt cannot be read: No such file"),
    ({"state": "z.npy"}, "is no file of tensors"),
    ({"state": "table.pt"}, "holds no state_dict of Autoencoder: it is a Tensor"),
    ({"state": "evil.pt"}, "is no file of tensors"),
    ({"state": "other.pt"}, "does not fit Autoencoder: it lacks decoder.bias, decoder.weight"),
    ({"state": "wide.pt"}, "size mismatch"),
    ({"latents": "narrow.npy"}, r"has shape \(3, 5\); \(N, 4\) with N"),
    ({"latents": "whole.npy"}, "holds an array of int64; floats are needed"),
    ({"latents": "nan.npy"}, "holds NaN or infinity"),
    ({"latents": "ckpt.pt"}, "holds a NpzFile; floats are needed"),
    ({"latents": "test.txt"}, "is no .npy file"),
    ({"device": "cuda:99"}, "cannot be used here"),
]


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("this file ran code",)


@pytest.mark.parametrize(("change", "message"), BAD, ids=lambda value: str(value)[:40])
def test_what_is_wrong_is_said(
    change: dict[str, str], message: str, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (trained / "test.txt").write_text("no numbers")
    torch.save({"model": Evil()}, trained / "evil.pt")
    torch.save(Autoencoder().encoder.state_dict(prefix="encoder."), trained / "other.pt")
    torch.save(Autoencoder(width=8).state_dict(), trained / "wide.pt")
    np.save(trained / "narrow.npy", np.zeros((3, 5), np.float32))
    np.save(trained / "whole.npy", np.zeros((3, 4), np.int64))
    np.save(trained / "nan.npy", np.full((3, 4), np.nan, np.float32))
    given = {name: str(trained / value) if name in {"state", "latents"} else value for name, value in change.items()}
    whole = {"submodule": "encoder.vq", "state": str(trained / "ckpt.pt"), **given}
    with pytest.raises(TargetError, match=message):
        open_subject(Spec(TARGET, **whole))  # type: ignore[arg-type]
    assert "ran code" not in capsys.readouterr().out


def nearest(z: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    return (z[:, None] - codebook[None]).square().sum(-1).argmin(-1)


def farthest(z: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    return (z[:, None] - codebook[None]).square().sum(-1).argmax(-1)


def floats(z: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    return nearest(z, codebook).float()


def check_lookup(name: str) -> object:
    words = ["check", f"{__name__}:{name}", "--as", "lookup", "--kw", "dim=3", "--only", "lookup.*"]
    return CliRunner().invoke(group, words, standalone_mode=False)


def test_a_bare_lookup() -> None:
    right, wrong = check_lookup("nearest"), check_lookup("farthest")
    assert right.return_value == 0, right.output  # type: ignore[attr-defined]
    assert wrong.return_value == 1  # type: ignore[attr-defined]
    assert "lookup.nearest" in wrong.output  # type: ignore[attr-defined]
    refused = check_lookup("floats")
    assert "must return codes, integers (3,)" in str(refused.exception)  # type: ignore[attr-defined]
