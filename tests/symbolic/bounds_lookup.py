"""T27 to T31 and T34 to T37: lookups, sampling, diagnostics and structured quantizers, under search."""

import numpy as np

from .search import ANY, FIRST_ORDER, ROUNDING, TIGHT, U, bound, case, dot32, f32, norm, parts, single, total


@case(3 + 4 * 3, TIGHT, ("T27", "certain radius"))
def t27_certain(rows):
    # a latent just inside the radius of a code: a nearer code would break it
    way, c = parts(rows, (3,), (4, 3))
    spacing = norm(c[:, 1:] - c[:, :1]).min(-1)
    radius = bound("T27", "certain radius", spacing=spacing)
    z = c[:, 0] + 0.999999 * radius[:, None] * way / norm(way)[:, None]
    D = norm(z[:, None] - c)
    own = 1e-12 * np.abs(c).max((1, 2))
    return np.where(spacing > 1e-3 * np.abs(c).max((1, 2)), D[:, 0] / (D[:, 1:].min(-1) + own), 0)


@case(3 + 4 * 3 + 3, TIGHT, ("T27", "safe move"))
def t27_safe(rows):
    z, c, way = parts(rows, (3,), (4, 3), (3,))
    D = norm(z[:, None] - c)
    nearest = D.argmin(-1)[:, None]
    ordered = np.sort(D, axis=-1)
    margin = bound("T27", "safe move", d_1=ordered[:, 0], d_2=ordered[:, 1])
    moved = norm((z + 0.999999 * margin[:, None] * way / norm(way)[:, None])[:, None] - c)
    chosen = np.take_along_axis(moved, nearest, 1)[:, 0]
    np.put_along_axis(moved, nearest, np.inf, 1)
    return np.where(margin > 1e-3 * np.abs(c).max((1, 2)), chosen / moved.min(-1), 0)


@case(6 + 6, ROUNDING, ("T28", "b, direct"))
def t28_direct(rows):
    z, c = f32(*parts(rows, (6,), (6,)))
    z32, c32 = single(z, c)
    D = ((z - c) ** 2).sum(-1)
    got = total((z32 - c32) ** 2)
    return np.abs(got - D) / bound("T28", "b, direct", d=6, u=U, D=D) / FIRST_ORDER


def expanded(z, c):
    return (dot32(z, z) - np.float32(2) * dot32(z, c)) + dot32(c, c)


@case(6 + 6, ROUNDING, ("T28", "b, expanded"))
def t28_expanded(rows):
    z, c = f32(*parts(rows, (6,), (6,)))
    got = expanded(*single(z, c))
    limit = bound("T28", "b, expanded", d=6, u=U, z_norm=norm(z), c_norm=norm(c))
    return np.abs(got - ((z - c) ** 2).sum(-1)) / limit / FIRST_ORDER


@case(6 + 6, ROUNDING, ("T28", "b, expanded"), ("T28", "rounded inputs add"))
def t28_rounded_inputs(rows):
    # the product from inputs in half precision, the squares in float32
    z, c = f32(*parts(np.clip(rows, -1e4, 1e4), (6,), (6,)))
    z32, c32 = single(z, c)
    low_z, low_c = (x.astype(np.float16).astype(np.float32) for x in (z32, c32))
    got = (dot32(z32, z32) - np.float32(2) * dot32(low_z, low_c)) + dot32(c32, c32)
    sizes = {"z_norm": norm(z), "c_norm": norm(c)}
    limit = bound("T28", "b, expanded", d=6, u=U, **sizes) + bound("T28", "rounded inputs add", u_low=2.0**-11, **sizes)
    normal = (np.abs(z) > 1e-4).all(-1) & (np.abs(c) > 1e-4).all(-1)
    return normal * np.abs(got - ((z - c) ** 2).sum(-1)) / limit / FIRST_ORDER


def far(rows):
    """Latents and codes far from the origin, where the expanded form fails."""
    centre, near, spread = parts(rows, (4,), (4,), (5, 4))
    z, c = f32(1e3 * centre + near, (1e3 * centre)[:, None] + spread)
    z32, c32 = single(z, c)
    D = ((z[:, None] - c) ** 2).sum(-1)
    return (
        expanded(z32[:, None], c32),
        D,
        bound("T28", "b, expanded", d=4, u=U, z_norm=norm(z)[:, None], c_norm=norm(c)),
    )


def picked(index, *arrays):
    return [np.take_along_axis(array, index, 1)[:, 0] for array in arrays]


@case(4 + 4 + 5 * 4, ROUNDING, ("T28", "regret bound"))
def t28_regret(rows):
    got, D, limits = far(rows)
    chosen, b_hat = picked(got.argmin(-1)[:, None], D, limits)
    least, b_min = picked(D.argmin(-1)[:, None], D, limits)
    allowed = bound("T28", "regret bound", D_min=least, b_hat=b_hat, b_min=b_min) - least
    return (chosen - least) / allowed / FIRST_ORDER


@case(4 + 4 + 5 * 4, ROUNDING, ("T28", "margin"))
def t28_margin(rows):
    # where the computed margin of the chosen code is certain, it is nearest: its true margin is the rest
    got, D, limits = far(rows)
    index = got.argmin(-1)[:, None]
    (mine, D_k, b_k) = picked(index, got.astype(float), D, limits)
    lead = got - mine[:, None] - FIRST_ORDER * bound("T28", "margin", b_j=limits, b_k=b_k[:, None])
    np.put_along_axis(lead, index, np.inf, 1)
    certain = (lead > 0).all(-1)
    np.put_along_axis(D, index, np.inf, 1)
    return np.where(certain, D_k / D.min(-1), 0)


@case(8, ROUNDING, ("T29", "change of a distance"))
def t29_half(rows):
    z, c = parts(np.clip(rows, -6e4, 6e4), (4,), (4,))
    rounded = norm(z.astype(np.float16).astype(float) - c.astype(np.float16).astype(float))
    limit = bound("T29", "change of a distance", u_h=2.0**-11, eta=2.0**-25, d=4, z_norm=norm(z), c_norm=norm(c))
    return np.abs(rounded - norm(z - c)) / limit


@case(1 + 4 + 5 * 4, ROUNDING, ("T29", "margin in half precision"))
def t29_certain(rows):
    # a margin above the bound: the nearest code is nearest after rounding too
    # from subnormal sizes (the first number sets the scale) to large ones
    z, c = parts(np.clip(rows[:, 1:] * 2.0 ** (24 * np.tanh(rows[:, :1] - 1)), -6e4, 6e4), (4,), (5, 4))
    D = norm(z[:, None] - c)
    half = norm(z.astype(np.float16).astype(float)[:, None] - c.astype(np.float16).astype(float))
    nearest = D.argmin(-1)[:, None]
    ordered = np.sort(D, axis=-1)
    sizes = {"z_norm": norm(z), "c_max": norm(c).max(-1)}
    limit = bound("T29", "margin in half precision", u_h=2.0**-11, eta=2.0**-25, d=4, **sizes)
    mine = picked(nearest, half)[0]
    np.put_along_axis(half, nearest, np.inf, 1)
    return np.where(ordered[:, 1] - ordered[:, 0] > limit, mine / half.min(-1), 0)


def law(rows):
    D, T = np.abs(rows[:, :5]), np.exp(np.clip(rows[:, 5], -4, 4))
    weights = np.exp(-(D - D.min(-1, keepdims=True)) / T[:, None])
    return D, T, weights / weights.sum(-1, keepdims=True)


@case(5 + 1, 0.5, ("T30", "1 − p_k at most"))
def t30_concentration(rows):
    D, T, p = law(rows)
    ordered = np.sort(D, axis=1)
    gap = np.maximum(ordered[:, 1] - ordered[:, 0], 1e-12)
    others = np.sort(p, axis=-1)[:, :-1].sum(-1)  # 1 − p_k without its rounding
    limit = bound("T30", "1 − p_k at most", K=5, Delta=gap, T=T)
    return (limit > 1e-300) * others / limit / (1 + 1e-9)


@case(5 + 1, 0.9, ("T30", "K p_j at least"), ("T30", "K p_j at most"))
def t30_range(rows):
    D, T, p = law(rows)
    rho = np.maximum(np.ptp(D, axis=-1), 1e-12)
    high, low = (bound("T30", name, rho=rho, T=T) for name in ("K p_j at most", "K p_j at least"))
    return np.maximum(5 * p.max(-1) / high, low / (5 * p.min(-1))) / (1 + 1e-9)


@case(5 + 1, ROUNDING, ("T30", "p, relative"))
def t30_rounding(rows):
    # softmax in float32, the least distance taken off
    D, T = f32(np.abs(rows[:, :5]), np.exp(np.clip(rows[:, 5], -4, 4)))
    D32, T32 = single(D, T)
    weights = np.exp(-(D32 - D32.min(-1, keepdims=True)) / T32[:, None])
    got = (weights / total(weights)[:, None]).astype(float)
    exact = np.exp(-(D - D.min(-1, keepdims=True)) / T[:, None])
    exact /= exact.sum(-1, keepdims=True)
    rho = np.ptp(D, axis=-1)
    limit = bound("T30", "p, relative", rho=rho, T=T, K=5, u=U)
    return (rho / T < 60) * (np.abs(got - exact) / exact).max(-1) / limit / FIRST_ORDER


def perplexity(p):
    return bound("T31", "perplexity", H=-(p * np.log(np.where(p > 0, p, 1))).sum(-1))


@case(6, ROUNDING, ("T31", "relative to the perplexity"))
def t31_rounding(rows):
    p = f32(np.abs(rows) / np.abs(rows).sum(-1, keepdims=True))
    p32 = single(p)[0]
    got = np.exp(-total(p32 * np.log(np.where(p32 > 0, p32, np.float32(1))))).astype(float)
    exact = perplexity(p)
    return np.abs(got - exact) / (bound("T31", "relative to the perplexity", K=6, u=U) * exact) / FIRST_ORDER


@case(6, TIGHT, ("T31", "perplexity at most"), ("T31", "perplexity at least"))
def t31_perplexity(rows):
    p = np.abs(rows) / np.abs(rows).sum(-1, keepdims=True)
    high, low = bound("T31", "perplexity at most", K=6), bound("T31", "perplexity at least")
    return np.maximum(perplexity(p) / high, low / perplexity(p)) / (1 + 1e-9)


@case(1, TIGHT, ("T31", "ln t at most"))
def t31_logarithm(rows):
    t = np.abs(rows[:, 0]) + 1e-300
    return (1 + np.log(t)) / (1 + bound("T31", "ln t at most", t=t)) / (1 + 1e-12)


@case(7, 0.5, ("T31", "loss of H by ε"))
def t31_epsilon(rows):
    p = np.abs(rows[:, :6]) / np.abs(rows[:, :6]).sum(-1, keepdims=True)
    eps = np.abs(rows[:, 6]) + 1e-9
    p = np.where(p > 0, p, 1e-300)
    loss = (p * np.log1p(eps[:, None] / p)).sum(-1)
    return loss / bound("T31", "loss of H by ε", K=6, epsilon=eps) / (1 + 1e-9)


@case(5, ROUNDING, ("T34", "relative to Σ|q|"))
def t34_sum(rows):
    q = f32(rows)
    (q32,) = single(q)
    return (
        np.abs(total(q32) - q.sum(-1)) / (bound("T34", "relative to Σ|q|", M=5, u=U) * np.abs(q).sum(-1)) / FIRST_ORDER
    )


def grouped(z32, c32):
    """Distances of three groups of two components, added up."""
    return total(total(((z32 - c32) ** 2).reshape(*z32.shape[:-1], 3, 2)))


@case(6 + 6, ROUNDING, ("T35", "D, relative"))
def t35_distance(rows):
    z, c = f32(*parts(rows, (6,), (6,)))
    D = ((z - c) ** 2).sum(-1)
    return np.abs(grouped(*single(z, c)) - D) / (bound("T35", "D, relative", d=6, u=U) * D) / FIRST_ORDER


@case(4 + 4 + 2 * 3 * 2, ROUNDING, ("T35", "D, relative"))
def t35_argmin_factors(rows):
    # two groups of three codes that almost tie: the pair of float32 argmins, against all nine in float64
    z, base, apart = parts(rows, (2, 2), (2, 1, 2), (2, 3, 2))
    z, c = f32(z, base * (1 + 1e-6 * np.tanh(apart)))
    z32, c32 = single(z, c)
    chosen = total((z32[:, :, None] - c32) ** 2).argmin(-1)
    D = ((z[:, :, None] - c) ** 2).sum(-1)
    joint = (D[:, 0, :, None] + D[:, 1, None, :]).reshape(len(rows), 9)
    got = joint[np.arange(len(rows)), 3 * chosen[:, 0] + chosen[:, 1]]
    least = joint.min(-1)
    return (got - least) / (bound("T35", "D, relative", d=4, u=U) * (got + least)) / FIRST_ORDER


@case(3, TIGHT, ("T36", "least level"), ("T36", "largest level"), ("T36", "largest ε"))
def t36_levels(rows):
    # in float32: ε below its largest value by more than the roundings of h tanh(x + s) − o
    L = 2 + np.floor(62 * np.abs(np.tanh(rows[:, 0])))
    eps = bound("T36", "largest ε", L=L) * (0.01 + 0.98 * np.abs(np.tanh(rows[:, 1])))
    even = (L % 2 == 0).astype(float)
    h, o = bound("T36", "h", L=L, epsilon=eps), bound("T36", "o", even=even)
    x32, shift, h32, o32 = single(rows[:, 2], np.arctanh(o / h), h, o)
    level = np.round(h32 * np.tanh(x32 + shift) - o32).astype(float)
    low, high = (bound("T36", name, L=L, even=even) for name in ("least level", "largest level"))
    return np.abs(level - (low + high) / 2) / ((high - low) / 2)


@case(3, ANY, ("T36", "f32 to"))
def t36_index(rows):
    # three digits of 256 levels: the largest index is the last integer below 2²⁴
    digits = np.minimum(np.floor(256 * np.abs(np.tanh(rows))), 255)
    a, b, c = single(*digits.T)
    got = (a + np.float32(256) * (b + np.float32(256) * c)).astype(float)
    exact = digits[:, 0] + 256 * (digits[:, 1] + 256 * digits[:, 2])
    assert int(bound("T36", "f32 to")) >= 256**3 - 1
    return np.where(got == exact, exact / int(bound("T36", "f32 to")), np.inf)


def sigmoid(x):
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))


@case(5, ROUNDING, ("T37", "p, absolute"))
def t37_posterior(rows):
    # the probability of a sign code in float32, with exact sums of four bits
    z, T = f32(rows[:, :4], np.abs(rows[:, 4]) + 1e-3)
    z32, T32 = single(z, T)
    one = np.float32(1)
    with np.errstate(over="ignore"):
        bits = one / (one + np.exp(-np.float32(4) * z32 / T32[:, None]))
    got = np.multiply.accumulate(bits, axis=-1, dtype=np.float32)[:, -1].astype(float)
    exact = sigmoid(bound("T37", "argument of σ", z=z, T=T[:, None])).prod(-1)
    return np.abs(got - exact) / bound("T37", "p, absolute", d=4, u=U) / FIRST_ORDER
