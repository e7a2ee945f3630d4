"""T1 to T8: the rotation in float32 and its extremal property, under search."""

import numpy as np
import torch

from vqverify.symbolic import oracles

from .search import (
    FIRST_ORDER,
    ROUNDING,
    TIGHT,
    U,
    bound,
    case,
    dot32,
    geometry,
    norm,
    parts,
    rotate32,
    single,
)
from .search import f32 as rounded


def pair(rows):
    return rounded(*parts(rows, (4,), (4,)))


def triple(rows):
    return rounded(*parts(rows, (4,), (4,), (4,)))


def jacobians(e, q):
    basis = np.eye(e.shape[1])
    return np.stack([oracles.rotation_jvp(e, q, np.broadcast_to(b, e.shape)) for b in basis], axis=-1)


@case(8, ROUNDING, ("T1", "|Rû − v̂|, | |Rx|/|x| − 1 |"))
def t01_maps(rows):
    e, q = pair(rows)
    _, q_norm, sigma, valid = geometry(e, q)
    error = norm(rotate32(e, q, e, transposed=False) - q) / q_norm
    return valid * error / bound("T1", "|Rû − v̂|, | |Rx|/|x| − 1 |", d=4, sigma=sigma, u=U) / FIRST_ORDER


@case(12, ROUNDING, ("T1", "|Rû − v̂|, | |Rx|/|x| − 1 |"))
def t01_keeps_norms(rows):
    e, q, x = triple(rows)
    e_norm, q_norm, sigma, valid = geometry(e, q)
    error = np.abs(norm(rotate32(e, q, x, transposed=False).astype(float)) / (q_norm / e_norm * norm(x)) - 1)
    return valid * error / bound("T1", "|Rû − v̂|, | |Rx|/|x| − 1 |", d=4, sigma=sigma, u=U) / FIRST_ORDER


@case(12, ROUNDING, ("T2", "|⟨e, Jᵀg⟩ − ⟨q, g⟩|/(|q||g|)"))
def t02_pairing(rows):
    e, q, g = triple(rows)
    _, q_norm, sigma, valid = geometry(e, q)
    back = rotate32(e, q, g, transposed=True).astype(float)
    error = np.abs((e * back).sum(-1) - (q * g).sum(-1)) / (q_norm * norm(g))
    return valid * error / bound("T2", "|⟨e, Jᵀg⟩ − ⟨q, g⟩|/(|q||g|)", d=4, sigma=sigma, u=U) / FIRST_ORDER


@case(6 + 9, TIGHT, ("T3", "|(J−I)x|²/|x|² on the plane"))
def t03_least_of_all_maps(rows):
    e, q, free = parts(rows, (3,), (3,), (3, 3))
    u = e / norm(e)[:, None]
    away = np.eye(3) - u[:, :, None] * u[:, None, :]
    maps = jacobians(e, q) + np.tanh(norm(free.reshape(-1, 9)))[:, None, None] * 1e-3 * free @ away  # all have A e = q
    c = (e * q).sum(-1) / (norm(e) * norm(q))
    least = np.sqrt(bound("T3", "|(J−I)x|²/|x|² on the plane", c=c, **{"lambda": norm(q) / norm(e)}))
    valid = np.isfinite(maps).all((1, 2)) & (geometry(e, q)[2] > 1e-3) & (least > 1e-3)
    # the squares of `least` cancel for q near e
    own = 1 + 1e-15 * (1 + norm(q) / norm(e)) ** 2 / np.maximum(least, 1e-3) ** 2
    moved = np.where(valid[:, None, None], maps, 0) - np.eye(3)
    return valid * least / np.linalg.norm(moved, 2, axis=(1, 2)) / own


@case(7, TIGHT, ("T3", "‖R−I‖_F²"), ("T3", "tr Q at most"))
def t03_least_of_rotations(rows):
    e, q, angle = rows[:, :3], rows[:, 3:6], rows[:, 6] * 1e-3
    u = e / norm(e)[:, None]
    cross = np.cross(np.eye(3)[None], u[:, None, :])
    around = np.eye(3) + np.sin(angle)[:, None, None] * cross + (1 - np.cos(angle))[:, None, None] * cross @ cross
    q = q * (norm(e) / norm(q))[:, None]
    rotations = jacobians(e, q) @ around  # R after a turn about û: all rotations with Qû = v̂
    c = (u * q).sum(-1) / norm(q)
    valid = np.isfinite(rotations).all((1, 2)) & (geometry(e, q)[2] > 1e-3)
    rotations = np.where(valid[:, None, None], rotations, 0)
    nearest = np.sqrt(bound("T3", "‖R−I‖_F²", c=c)) / np.sqrt(((rotations - np.eye(3)) ** 2).sum((1, 2)))
    trace = (3 + np.trace(rotations, axis1=1, axis2=2)) / (3 + bound("T3", "tr Q at most", c=c, d=3))
    return valid * (c < 0.999) * np.maximum(nearest, trace) / (1 + 1e-9)


def detached(e, q, g, *, scale, turn):
    """The VJP of scale·R·e by autograd in float32, each factor in the graph or not."""
    e, q, g = (torch.tensor(x, dtype=torch.float32) for x in (e, q, g))
    e.requires_grad_()
    length = e.norm(dim=1, keepdim=True)
    u, v = (e / length if turn else (e / length).detach()), q / q.norm(dim=1, keepdim=True)
    s = u + v
    w = s / s.norm(dim=1, keepdim=True)
    factor = q.norm(dim=1, keepdim=True) / length
    y = (factor if scale else factor.detach()) * (
        e - 2 * w * (w * e).sum(1, keepdim=True) + 2 * v * (u * e).sum(1, keepdim=True)
    )
    return torch.autograd.grad(y, e, g)[0].numpy().astype(float)


@case(12, ROUNDING, ("T4", "VJP, relative to λ|g|"))
def t04_both_detached(rows):
    e, q, g = triple(rows)
    e_norm, q_norm, sigma, valid = geometry(e, q)
    error = norm(detached(e, q, g, scale=False, turn=False) - oracles.rotation_vjp(e, q, g))
    limit = bound("T4", "VJP, relative to λ|g|", d=4, sigma=sigma, u=U) * q_norm / e_norm * norm(g)
    return valid * error / limit / FIRST_ORDER


@case(12, ROUNDING, ("T4", "VJP, relative to λ|g|"))
def t04_only_the_rotation_detached(rows):
    e, q, g = triple(rows)
    e_norm, q_norm, sigma, valid = geometry(e, q)
    u, back = e / e_norm[:, None], oracles.rotation_vjp(e, q, g)
    exact = back - u * (u * back).sum(-1)[:, None]
    error = norm(detached(e, q, g, scale=True, turn=False) - exact)
    limit = bound("T4", "VJP, relative to λ|g|", d=4, sigma=sigma, u=U) * q_norm / e_norm * norm(g)
    return valid * error / limit / FIRST_ORDER


@case(12, ROUNDING, ("T4", "VJP with R in the graph, relative to λ|g|"))
def t04_only_the_scale_detached(rows):
    e, q, g = triple(rows)
    e_norm, q_norm, sigma, valid = geometry(e, q)
    exact = e * (q * g).sum(-1)[:, None] / e_norm[:, None] ** 2  # λûv̂ᵀg
    error = norm(detached(e, q, g, scale=False, turn=True) - exact)
    limit = bound("T4", "VJP with R in the graph, relative to λ|g|", d=4, sigma=sigma, u=U)
    return valid * error / (limit * q_norm / e_norm * norm(g)) / FIRST_ORDER


@case(12, ROUNDING, ("T4", "VJP with R in the graph, relative to λ|g|"))
def t04_nothing_detached(rows):
    e, q, g = triple(rows)
    e_norm, q_norm, sigma, valid = geometry(e, q)
    error = norm(detached(e, q, g, scale=True, turn=True))
    limit = bound("T4", "VJP with R in the graph, relative to λ|g|", d=4, sigma=sigma, u=U)
    return valid * error / (limit * q_norm / e_norm * norm(g)) / FIRST_ORDER


@case(12, ROUNDING, ("T5", "B1"))
def t05_backward(rows):
    e, q, g = triple(rows)
    e_norm, q_norm, sigma, valid = geometry(e, q)
    error = norm(rotate32(e, q, g, transposed=True) - oracles.rotation_vjp(e, q, g))
    return valid * error / (bound("T5", "B1", d=4, sigma=sigma, u=U) * q_norm / e_norm * norm(g)) / FIRST_ORDER


@case(12, ROUNDING, ("T5", "B1"))
def t05_forward(rows):
    e, q, x = triple(rows)
    e_norm, q_norm, sigma, valid = geometry(e, q)
    error = norm(rotate32(e, q, x, transposed=False) - oracles.rotation_jvp(e, q, x))
    return valid * error / (bound("T5", "B1", d=4, sigma=sigma, u=U) * q_norm / e_norm * norm(x)) / FIRST_ORDER


@case(12, ROUNDING, ("T5", "B1"), ("T5", "extra of 1 + c"))
def t05_one_plus_cosine(rows):
    # x − s(s·x)/(1 + c) + 2v̂(û·x): the denominator 1 + c carries the rounding of û·v̂
    e, q, g = triple(rows)
    e_norm, q_norm, sigma, valid = geometry(e, q, least=2e-2)
    e32, q32, g32 = single(e, q, g)
    first, second = np.sqrt(dot32(e32, e32)), np.sqrt(dot32(q32, q32))
    u, v = e32 / first[:, None], q32 / second[:, None]
    s = u + v
    one = np.float32(1)
    back = g32 - s * (dot32(s, g32) / (one + dot32(u, v)))[:, None] + np.float32(2) * u * dot32(v, g32)[:, None]
    error = norm((second / first)[:, None] * back - oracles.rotation_vjp(e, q, g))
    limit = bound("T5", "B1", d=4, sigma=sigma, u=U) + bound("T5", "extra of 1 + c", d=4, sigma=sigma, u=U)
    return valid * error / (limit * q_norm / e_norm * norm(g)) / FIRST_ORDER


@case(12, ROUNDING, ("T5", "| |Jx|/(λ|x|) − 1 |, two reflections"))
def t05_two_reflections_keep_norms(rows):
    # q = −e + a little: whatever σ is
    e, near, x = triple(rows)
    (q,) = single(-e + 1e-4 * near)
    q = q.astype(float)
    e_norm, q_norm, _, valid = geometry(e, q, least=1e-6)
    e32, q32, x32 = single(e, q, x)
    first, second = np.sqrt(dot32(e32, e32)), np.sqrt(dot32(q32, q32))
    v = q32 / second[:, None]
    s = e32 / first[:, None] + v
    w = s / np.sqrt(dot32(s, s))[:, None]
    two = np.float32(2)
    for axis in (w, v):
        x32 = x32 - two * axis * dot32(axis, x32)[:, None]
    got = norm(((second / first)[:, None] * x32).astype(float)) / (q_norm / e_norm * norm(x))
    return valid * np.abs(got - 1) / bound("T5", "| |Jx|/(λ|x|) − 1 |, two reflections", d=4, u=U) / FIRST_ORDER


@case(9, TIGHT, ("T6", "‖dR‖₂/‖dv̂‖"))
def t06_condition(rows):
    # a small move of v̂ along a unit tangent, d = 3
    u, v, tangent = (x / norm(x)[:, None] for x in parts(rows, (3,), (3,), (3,)))
    tangent = tangent - v * (tangent * v).sum(-1)[:, None]
    tangent = 1e-6 * tangent / norm(tangent)[:, None]
    moved = (v + tangent) / norm(v + tangent)[:, None]
    sigma = norm(u + v)
    valid = (sigma > 0.05) & np.isfinite(moved).all(-1)
    change = np.where(valid[:, None, None], jacobians(u, moved) - jacobians(u, v), 0)
    # the second difference of R is of size (|dv̂|/σ)²
    limit = bound("T6", "‖dR‖₂/‖dv̂‖", sigma=sigma) * norm(moved - v) * (1 + 1e-3)
    return valid * np.linalg.norm(change, 2, axis=(1, 2)) / limit


@case(3, TIGHT, ("T6", "σ₀"))
def t06_threshold(rows):
    # σ ≥ σ₀ keeps B₁ at τ and what does not depend on σ
    d, tau = np.ceil(np.abs(rows[:, 0])) + 1, np.exp(-np.abs(rows[:, 1]))
    sigma = bound("T6", "σ₀", d=d, u=U, tau_0=tau) * (1 + np.abs(rows[:, 2]))
    return bound("T5", "B1", d=d, sigma=sigma, u=U) / (tau + bound("T5", "B1", d=d, sigma=np.inf, u=U)) / (1 + 1e-12)


@case(12, ROUNDING, ("T7", "relative to λ|x|"))
def t07_equivariance(rows):
    # Q reverses the components and turns two signs: exact in floats
    e, q, x = triple(rows)
    e_norm, q_norm, sigma, valid = geometry(e, q)
    signs = np.array([1.0, -1.0, 1.0, -1.0])
    plain = rotate32(e, q, x, transposed=True)[:, ::-1] * signs
    turned = rotate32(*(part[:, ::-1] * signs for part in (e, q, x)), transposed=True)
    limit = bound("T7", "relative to λ|x|", d=4, sigma=sigma, u=U) * q_norm / e_norm * norm(x)
    return valid * norm(plain - turned.astype(float)) / limit / FIRST_ORDER


@case(12, ROUNDING, ("T8", "relative to |e−q||g|"))
def t08_push_pull(rows):
    e, q, g = triple(rows)
    e_norm, q_norm, sigma, valid = geometry(e, q)
    lam, c = q_norm / e_norm, (e * q).sum(-1) / (e_norm * q_norm)
    rate = -2 * ((e - q) * (rotate32(e, q, g, transposed=True).astype(float) - g)).sum(-1)
    exact = bound("T8", "d|e−q|²/dη", **{"lambda": lam}, c=c, qg=(q * g).sum(-1), eg=(e * g).sum(-1))
    limit = bound("T8", "relative to |e−q||g|", d=4, sigma=sigma, u=U, **{"lambda": lam}) * norm(e - q) * norm(g)
    return valid * np.abs(rate - exact) / limit / FIRST_ORDER
