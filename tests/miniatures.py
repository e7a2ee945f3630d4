"""Tiny layers, each with one way to misbehave: what the harness says about them is tested, not they."""

import ctypes
import os
import sys

import torch
from torch import nn

from vqverify.mutants.base import EmaLayer


class Right(nn.Module):
    """Nearest code, straight-through, loss of VQ-VAE: nothing is wrong."""

    def __init__(self, dim=4, codebook_size=8):
        super().__init__()
        self.codebook = nn.Parameter(torch.randn(codebook_size, dim))

    def choose(self, z):
        return torch.cdist(z, self.codebook, compute_mode="donot_use_mm_for_euclid_dist").argmin(-1)

    def forward(self, z):
        codes = self.choose(z)
        q = self.codebook[codes]
        loss = (z - q.detach()).square().mean() + (z.detach() - q).square().mean()
        return z + (q - z).detach(), codes, loss


class AlwaysWrong(Right):
    """Takes the farthest code."""

    def choose(self, z):
        return torch.cdist(z, self.codebook).argmax(-1)


class Raises(Right):
    """Is built, and raises on every call."""

    def forward(self, z):
        raise RuntimeError(f"no kernel for {tuple(z.shape)}")


class Exits(Right):
    """Ends the program on every call."""

    def forward(self, z):
        raise SystemExit(0)


class GivesNaN(Right):
    """Returns NaN in place of latents."""

    def forward(self, z):
        z_q, codes, loss = super().forward(z)
        return z_q * float("nan"), codes, loss


class Liar(Right):
    """Takes the argument `rotation_trick` and does straight-through."""

    def __init__(self, dim=4, codebook_size=8, rotation_trick=True):
        super().__init__(dim, codebook_size)
        self.rotation_trick = rotation_trick


class HiddenState(Right):
    """Remembers how often it was called, in a plain attribute, and lets that move its output."""

    calls = 0

    def forward(self, z):
        z_q, codes, loss = super().forward(z)
        self.calls += 1
        return z_q + 0.01 * self.calls, codes, loss


class Reseeds(Right):
    """Seeds the global generator in every pass."""

    def forward(self, z):
        torch.manual_seed(0)
        return super().forward(z)


class Speaks(Right):
    """Returns what makes no sense."""

    def forward(self, z):
        return {"z_q": "quantized"}


class Dies(Right):
    """Kills the process when it sees nothing but zeros, or at the first call."""

    def __init__(self, dim=4, codebook_size=8, at_once=False):
        super().__init__(dim, codebook_size)
        self.at_once = at_once

    def forward(self, z):
        if self.at_once or not z.any():
            os._exit(7)
        return super().forward(z)


class LastOfEqual(EmaLayer):
    """Takes the last of equally near codes, where its parent takes the first."""

    def lookup(self, flat):
        return len(self.table) - 1 - torch.cdist(flat, self.table).flip(1).argmin(1)


class Hostile(Right):
    """Loops for ever, reads address 0, ends the interpreter or asks for more memory than there is."""

    def __init__(self, how, dim=4, codebook_size=8):
        super().__init__(dim, codebook_size)
        self.how = how

    def forward(self, z):
        while self.how == "loops":
            pass
        if self.how == "crashes":
            ctypes.string_at(0)
        if self.how == "exits":
            sys.exit(0)
        if self.how == "hoards":
            torch.ones(2**50)
        if self.how == "grows":
            kept = []
            while len(kept) < 2**20:
                kept.append(torch.empty(2**28, dtype=torch.uint8))  # taken, and never touched
        return super().forward(z)
