"""T9 to T16: gradient gaps, consistency, and the forward of the straight-through estimator, under search."""

import numpy as np

from vqverify.symbolic import oracles

from .search import ANY, EPS, FIRST_ORDER, ROUNDING, TIGHT, U, bound, case, f32, geometry, norm, parts, rotate32, single


@case(4 * 3 + 6, TIGHT, ("T9", "bound"))
def t09_straight_through(rows):
    # L = Σ a_i cos(b_i x_i + f_i)/b_i + k_i x_i²/2: the gradient is (max |a_i b_i| + |k_i|)-Lipschitz
    a, b, f, k, e, q = parts(rows, (3,), (3,), (3,), (3,), (3,), (3,))

    def slope(x):
        return -a * np.sin(b * x + f) + k * x

    kappa = (np.abs(a * b) + np.abs(k)).max(-1)
    return norm(slope(e) - slope(q)) / bound("T9", "bound", kappa=kappa, h=norm(q - e))


@case(4 * 4 + 2 + 4, 0.5, ("T9", "bound"), ("T9", "κ of L∘G"))
def t09_composite(rows):
    # G = A sin(Bx), L = p·y + r·cos(y) in two dimensions: J_G = A diag(cos Bx) B, ∇L = p − r sin(y)
    A, B, p, r, e, q = parts(rows, (2, 2), (2, 2), (2,), (2,), (2,), (2,))
    inner, outer = np.linalg.norm(B, 2, axis=(1, 2)), np.linalg.norm(A, 2, axis=(1, 2))

    def slope(x):
        at = np.einsum("nij,nj->ni", B, x)
        y = np.einsum("nij,nj->ni", A, np.sin(at))
        return np.einsum("nij,ni->nj", B, np.cos(at) * np.einsum("nij,ni->nj", A, p - r * np.sin(y)))

    kappa = bound(
        "T9",
        "κ of L∘G",
        kappa_L=np.abs(r).max(-1),
        lip_G=outer * inner,
        lip_L=norm(np.abs(p) + np.abs(r)),
        kappa_G=outer * inner * np.linalg.norm(B, axis=2).max(-1),
    )
    own = 64 * EPS * outer * inner * norm(np.abs(p) + np.abs(r)) * (1 + inner * (norm(e) + norm(q)) * (1 + outer))
    return norm(slope(e) - slope(q)) / (bound("T9", "bound", kappa=kappa, h=norm(q - e)) + own)


def symmetric(entries, size):
    matrix = entries.reshape(-1, size, size)
    return matrix + matrix.transpose(0, 2, 1)


def rotation_limit(kappa, g, e, q):
    return bound("T10", "bound", kappa=kappa, g_norm=norm(g), e_norm=norm(e), h=norm(q - e))


@case(4 + 2 + 2 + 2, ANY, ("T10", "bound"))
def t10_rotation(rows):
    H, p, e, q = symmetric(rows[:, :4], 2), *parts(rows[:, 4:], (2,), (2,), (2,))
    at_e, at_q = (np.einsum("nij,nj->ni", H, x) + p for x in (e, q))
    gap = norm(at_e - oracles.rotation_vjp(e, q, at_q))
    kappa = np.abs(np.linalg.eigvalsh(H)).max(-1)
    return (geometry(e, q)[2] > 1e-3) * gap / rotation_limit(kappa, at_q, e, q) / (1 + 1e-9)


@case(2 + 2 + 2 + 1, TIGHT, ("T10", "bound"))
def t10_rotation_aligned(rows):
    # the quadratic of the derivation: H takes e − q to the direction of (I − Jᵀ)g
    e, q, g = parts(rows[:, :6], (2,), (2,), (2,))
    kappa = np.abs(rows[:, 6])
    turned = g - oracles.rotation_vjp(e, q, g)
    one, other = (e - q) / norm(e - q)[:, None], turned / norm(turned)[:, None]
    axis = one - other
    H = kappa[:, None, None] * (np.eye(2) - 2 * axis[:, :, None] * axis[:, None, :] / (axis**2).sum(-1)[:, None, None])
    gap = norm(np.einsum("nij,nj->ni", H, e - q) + turned)
    valid = (geometry(e, q)[2] > 1e-3) & (norm(axis) > 1e-3)
    own = 64 * EPS * (kappa * (norm(e) + norm(q)) + (1 + norm(q) / norm(e)) * norm(g)) / norm(axis) ** 2
    return valid * gap / (rotation_limit(kappa, g, e, q) + own)


@case(9, TIGHT, ("T11", "bound"))
def t11_hessian(rows):
    M, e, q = parts(rows, (3,), (3,), (3,))  # L = Σ M_i x_i³/6
    estimate = M * q**2 / 2 + M * q * (e - q)
    own = 16 * EPS * norm(np.abs(M) * (e**2 + q**2))  # the rounding of this computation
    return norm(M * e**2 / 2 - estimate) / (bound("T11", "bound", M=np.abs(M).max(-1), h=norm(q - e)) + own)


def gap_tolerance(kappa, e, q, sigma):
    lam = norm(q) / norm(e)
    return bound("T12", "gap, H = κI", d=4, u=U, kappa=kappa, e_norm=norm(e), sigma=sigma, **{"lambda": lam})


@case(9, ROUNDING, ("T12", "gap, H = κI"))
def t12_quadratic(rows):
    # L = κ|x|²/2 in float32: the gap is κ(1 − λ²)|e|, which is 0 for |q| = |e|
    e, q, kappa = f32(*parts(rows[:, :8], (4,), (4,)), np.abs(rows[:, 8]))
    _, _, sigma, valid = geometry(e, q)
    k32, e32, q32 = single(kappa, e, q)
    got = (k32[:, None] * e32 - rotate32(e, q, k32[:, None] * q32, transposed=True)).astype(float)
    stated = bound("T12", "rotation's gap, ½κ|x|²", kappa=kappa, e_norm=norm(e), **{"lambda": norm(q) / norm(e)})
    error = norm(got - stated[:, None] * e / norm(e)[:, None])
    return valid * error / gap_tolerance(kappa, e, q, sigma) / FIRST_ORDER


@case(9, ROUNDING, ("T12", "gap, H = κI"))
def t12_straight_through(rows):
    e, q, kappa = f32(*parts(rows[:, :8], (4,), (4,)), np.abs(rows[:, 8]))
    _, _, sigma, valid = geometry(e, q)
    k32, e32, q32 = single(kappa, e, q)
    got = norm((k32[:, None] * e32 - k32[:, None] * q32).astype(float))
    stated = bound("T12", "STE's gap, ½κ|x|²", kappa=kappa, h=norm(q - e))
    return valid * np.abs(got - stated) / gap_tolerance(kappa, e, q, sigma) / FIRST_ORDER


@case(8, ROUNDING, ("T13", "|Jᵀg − g|/|g| at e = q"))
def t13_identity_at_the_code(rows):
    q, g = f32(*parts(rows, (4,), (4,)))
    valid = geometry(q, q)[3]
    error = norm(rotate32(q, q, g, transposed=True) - g) / norm(g)
    return valid * error / bound("T13", "|Jᵀg − g|/|g| at e = q", d=4, u=U) / FIRST_ORDER


@case(6, TIGHT, ("T13", "gap near q, relative to |g|h/|e|"))
def t13_vanishes_near_the_code(rows):
    # L linear: the gap at e = q + hδ goes to 0 with h, as fast as T10 says
    q, g, way = parts(rows, (2,), (2,), (2,))
    e = q + 1e-4 * norm(q)[:, None] * way / norm(way)[:, None]
    gap = norm(g - oracles.rotation_vjp(e, q, g))
    limit = bound("T13", "gap near q, relative to |g|h/|e|") * norm(g) * norm(q - e) / norm(e)
    return gap / limit / (1 + 1e-9)


@case(2, ROUNDING, ("T14", "|y−q| bound"))
def t14_forward(rows):
    z, q = f32(rows[:, 0], rows[:, 1])
    z32, q32 = single(z, q)
    y = (z32 + (q32 - z32)).astype(float)
    return np.abs(y - q) / bound("T14", "|y−q| bound", z=z, q=q, u=U) / FIRST_ORDER


@case(2, ANY, ("T14", "exact for z/q in"))
def t14_exact(rows):
    low, high = (float(end) for end in bound("T14", "exact for z/q in"))
    (q32,) = single(rows[:, 0])
    (z32,) = single(q32 * (low + (high - low) * np.abs(np.tanh(rows[:, 1]))))
    inside = (low * q32 <= z32) & (z32 <= high * q32) | (high * q32 <= z32) & (z32 <= low * q32)
    return np.where(inside & (z32 + (q32 - z32) != q32), np.inf, 0.0)


@case(2, ANY, ("T14", "y = 0 for |q|/|z| below"))
def t14_vanishes(rows):
    (z32,) = single(rows[:, 0])
    (q32,) = single(z32 * bound("T14", "y = 0 for |q|/|z| below", u=U) * np.tanh(rows[:, 1]))
    below = np.abs(q32) < bound("T14", "y = 0 for |q|/|z| below", u=U) * np.abs(z32.astype(float))
    return np.where(below & (z32 + (q32 - z32) != 0), np.inf, 0.0)


@case(2, ROUNDING, ("T15", "(g/N)N, relative"))
def t15_scaling(rows):
    g, N = f32(rows[:, 0], np.abs(rows[:, 1]) + 1e-3)
    g32, N32 = single(g, N)
    return np.abs((g32 / N32) * N32 - g) / (bound("T15", "(g/N)N, relative", u=U) * np.abs(g)) / FIRST_ORDER


@case(3, ROUNDING, ("T16", "gradients, relative"))
def t16_gradient(rows):
    z, q = f32(rows[:, 0], rows[:, 1])
    beta = f32(np.abs(np.tanh(rows[:, 2])))
    b32, z32, q32 = single(beta, z, q)
    got = (np.float32(1) - b32) * (z32 - q32)
    exact = bound("T16", "A ∂z", z=z, q=q, beta=beta)
    return np.abs(got - exact) / (bound("T16", "gradients, relative", u=U) * np.abs(exact)) / FIRST_ORDER
