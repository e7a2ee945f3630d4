"""T17 to T26 and T33: updates of codebooks and the commitment loss, under search."""

import numpy as np

from .search import EPS, FIRST_ORDER, ROUNDING, TIGHT, U, bound, case, f32, norm, parts, single, total


@case(8, ROUNDING, ("T17", "relative to max(|c|, max|z|)"))
def t17_ema(rows):
    n = 5
    z, c = f32(rows[:, :n], rows[:, n])
    N, gamma = f32(np.abs(rows[:, n + 1]) + 0.1, 0.5 + 0.49 * np.abs(np.tanh(rows[:, n + 2])))
    z32, c32, N32, g32 = single(z, c, N, gamma)
    rest = np.float32(1) - g32
    got = (g32 * (N32 * c32) + rest * total(z32)) / (g32 * N32 + rest * np.float32(n))
    exact = bound("T17", "c'", N=N, c=c, S=z.sum(-1), n=n, gamma=gamma)
    limit = bound("T17", "relative to max(|c|, max|z|)", n=n, u=U) * np.maximum(np.abs(c), np.abs(z).max(-1))
    return np.abs(got - exact) / limit / FIRST_ORDER


@case(12, ROUNDING, ("T19", "relative to Σ|·|"))
def t19_counts(rows):
    K, steps, B = 4, 8, 7.0
    N = f32(np.abs(rows[:, :K]) + 1e-3)
    gamma = f32(0.5 + 0.49 * np.abs(np.tanh(rows[:, K])))
    (counts,), (g32,) = single(N), single(gamma)
    share = np.eye(K)[np.argsort(rows[:, K + 1 : 2 * K + 1], axis=1)[:, 0]] * B
    for _ in range(steps):
        counts = g32[:, None] * counts + (np.float32(1) - g32)[:, None] * share.astype(np.float32)
    exact = bound("T19", "ΣN_t", N_0=N.sum(-1), B=B, gamma=gamma, t=steps)
    limit = bound("T19", "relative to Σ|·|", K=K, B=B, t=steps, u=U)
    return np.abs(total(counts) - exact) / (limit * exact) / FIRST_ORDER


@case(3 + 4 * 5 + 1, ROUNDING, ("T19", "relative to Σ|·|"))
def t19_sums(rows):
    # three codes, four batches of five latents, dealt to the codes in turn
    m, z, _ = f32(*parts(rows, (3,), (4, 5), (1,)))
    gamma = f32(0.5 + 0.49 * np.abs(np.tanh(rows[:, -1])))
    (sums,), (g32,), (z32,) = single(m), single(gamma), single(z)
    rest = np.float32(1) - g32
    exact, size = m.sum(-1), np.abs(m).sum(-1)
    for step in range(4):
        added = np.stack([total(z32[:, step, code::3]) for code in range(3)], axis=-1)
        sums = g32[:, None] * sums + rest[:, None] * added
        exact, size = (
            gamma * past + (1 - gamma) * new.sum(-1) for past, new in ((exact, z[:, step]), (size, np.abs(z[:, step])))
        )
    limit = bound("T19", "relative to Σ|·|", K=3, B=5, t=4, u=U)
    return np.abs(total(sums) - exact) / (limit * size) / FIRST_ORDER


@case(3, ROUNDING, ("T20", "drift, relative"))
def t20_drift(rows):
    steps = 50
    c, N = f32(rows[:, 0], np.abs(rows[:, 1]) + 0.1)
    gamma = f32(0.9 + 0.09 * np.abs(np.tanh(rows[:, 2])))
    c32, N32, g32 = single(c, N, gamma)
    m, counts = N32 * c32, N32
    for _ in range(steps):
        m, counts = g32 * m, g32 * counts
    # m₀ = N₀c₀ is itself rounded: one more u
    return np.abs(m / counts - c) / ((bound("T20", "drift, relative", t=steps, u=U) + U) * np.abs(c)) / FIRST_ORDER


@case(1, 0.9, ("T20", "normal steps, γ = .99, .8"))
def t20_normal_steps(rows):
    # N from 1 to 4: the counts of an unused code are normal float32 numbers for at least that many steps
    worst = np.zeros(len(rows))
    for gamma, steps in zip((0.99, 0.8), bound("T20", "normal steps, γ = .99, .8"), strict=True):
        least = (1 + np.abs(3 * np.tanh(rows[:, 0]))) * float(np.float32(gamma)) ** int(steps) * (1 - U) ** int(steps)
        worst = np.maximum(worst, 2.0**-126 * (1 - 2 * int(steps) * U) / least)
    return worst


@case(5, TIGHT, ("T21", "ρ at most"))
def t21_shrinkage(rows):
    N, eps = np.abs(rows[:, :4]) + 1e-12, np.abs(rows[:, 4]) + 1e-12
    T = N.sum(-1)
    rho = bound("T21", "ρ", N=N.max(-1), T=T, K=4, epsilon=eps)
    return rho / bound("T21", "ρ at most", T=T, K=4, epsilon=eps) / (1 + 1e-12)


@case(6, ROUNDING, ("T21", "relative to |c'|"))
def t21_rounding(rows):
    N, eps, m = f32(np.abs(rows[:, :4]) + 1e-3, np.abs(rows[:, 4]) + 1e-6, rows[:, 5])
    N32, eps32, m32 = single(N, eps, m)
    T32 = total(N32)
    got = m32 / ((N32[:, 0] + eps32) * (T32 / (T32 + np.float32(4) * eps32)))
    exact = m / bound("T21", "N̂", N=N[:, 0], T=N.sum(-1), K=4, epsilon=eps)
    return np.abs(got - exact) / (bound("T21", "relative to |c'|", K=4, u=U) * np.abs(exact)) / FIRST_ORDER


@case(9, ROUNDING, ("T22", "relative to Σ|z|"))
def t22_sharded_sums(rows):
    z = f32(rows)
    (z32,) = single(z)
    got = total(z32[:, :4]) + total(z32[:, 4:])
    return np.abs(got - z.sum(-1)) / (bound("T22", "relative to Σ|z|", B=9, u=U) * np.abs(z).sum(-1)) / FIRST_ORDER


@case(7, ROUNDING, ("T23", "relative to νΣ|g|"))
def t23_synchronized(rows):
    g, nu = f32(rows[:, :6], rows[:, 6])
    g32, nu32 = single(g, nu)
    got = total(nu32[:, None] * g32)
    limit = bound("T23", "relative to νΣ|g|", n=6, u=U) * np.abs(nu) * np.abs(g).sum(-1)
    return np.abs(got - nu * g.sum(-1)) / limit / FIRST_ORDER


def cells(z, c, move):
    """The codes after a step towards the mean of their cell, and the distances before and after."""
    distance = (z[:, :, None] - c[:, None, :]) ** 2
    nearest = distance.argmin(-1)
    moved = c.copy()
    for code in range(c.shape[1]):
        moved[:, code] = move(c[:, code], z, nearest == code)
    return ((z[:, :, None] - moved[:, None, :]) ** 2).min(-1).sum(-1), distance.min(-1).sum(-1)


@case(6 + 3 + 1, TIGHT, ("T24", "ηn from, to"))
def t24_never_increases(rows):
    z, c = rows[:, :6], rows[:, 6:9]
    low, high = (float(end) for end in bound("T24", "ηn from, to"))
    step = low + (high - low) * np.abs(np.tanh(rows[:, 9]))

    def move(code, latents, chosen):
        count = chosen.sum(-1)
        mean = np.where(count > 0, (latents * chosen).sum(-1) / np.maximum(count, 1), code)
        return code + step * (mean - code)

    after, before = cells(z, c, move)
    return after / before / (1 + 1e-9)


@case(6 + 3 + 1, ROUNDING, ("T24", "relative to Σ|z − c|²"))
def t24_rounding(rows):
    # the sum of squares after assignment, in float32
    z, c = f32(*parts(rows, (3, 2), (2, 2)))
    z32, c32 = single(z, c)
    got = total(total((z32[:, :, None] - c32[:, None]) ** 2).min(-1))
    exact = ((z[:, :, None] - c[:, None]) ** 2).sum(-1).min(-1).sum(-1)
    return np.abs(got - exact) / (bound("T24", "relative to Σ|z − c|²", B=3, d=2, u=U) * exact) / FIRST_ORDER


@case(5, TIGHT, ("T24", "change of a task gradient"))
def t24_task_gradient(rows):
    # L = a cos(bx)/b + kx²/2 at the code before and after a step
    a, b, c, mean = rows[:, :4].T
    r = np.abs(2 * np.tanh(rows[:, 4]))
    moved = c + r * (mean - c)
    change = np.abs(-a * np.sin(b * moved) + a * np.sin(b * c))
    own = 8 * EPS * np.abs(a) * (1 + np.abs(b) * (np.abs(c) + np.abs(moved)))
    return change / (bound("T24", "change of a task gradient", kappa=np.abs(a * b), eta=r, n=1, c=c, zbar=mean) + own)


@case(8, ROUNDING, ("T25", "relative to aΣ|G|(1 + |x|)"))
def t25_affine(rows):
    x, G, a = f32(rows[:, :3], rows[:, 3:6], rows[:, 6])
    x32, G32, a32 = single(x, G, a)
    limit = bound("T25", "relative to aΣ|G|(1 + |x|)", K=3, u=U) * np.abs(a) * (np.abs(G) * (1 + np.abs(x))).sum(-1)
    scale = np.abs(a32 * total(G32 * x32) - bound("T25", "∂S", a=a, sum_Gx=(G * x).sum(-1)))
    shift = np.abs(a32 * total(G32) - bound("T25", "∂b", a=a, sum_G=G.sum(-1)))
    return np.maximum(scale, shift) / limit / FIRST_ORDER


@case(6 + 4, ROUNDING, ("T26", "relative to max|z| + (σ_e/σ_q) max|c|"))
def t26_moments(rows):
    z, c = f32(*parts(rows, (6,), (4,)))
    z32, c32 = single(z, c)

    def moments(x, add):
        size = x.dtype.type(x.shape[1])
        mean = add(x) / size
        return mean, np.sqrt(add((x - mean[:, None]) ** 2) / size)

    def mapped(latents, codes, add):
        (mean_e, std_e), (mean_q, std_q) = moments(latents, add), moments(codes, add)
        return (std_e / std_q)[:, None] * (codes - mean_q[:, None]) + mean_e[:, None], std_e / std_q, std_q

    got, _, _ = mapped(z32, c32, total)
    exact, scale, spread = mapped(z, c, lambda x: x.sum(-1))
    largest = np.abs(c).max(-1)
    limit = bound("T26", "relative to max|z| + (σ_e/σ_q) max|c|", B=6, K=4, u=U)
    valid = spread > 0
    return valid * (np.abs(got - exact).max(-1) / (limit * (np.abs(z).max(-1) + scale * largest))) / FIRST_ORDER


@case(6 * 2 + 3 * 2, TIGHT, ("T33", "upper bound"))
def t33_upper(rows):
    z, c = parts(rows, (6, 2), (3, 2))
    loss = ((z[:, :, None] - c[:, None]) ** 2).sum(-1).min(-1).mean(-1) / 2
    mean = z.mean(1)
    spread = ((z - mean[:, None]) ** 2).sum(-1).mean(-1)
    apart = ((c - mean[:, None]) ** 2).sum(-1).min(-1)
    return loss / bound("T33", "upper bound", v=spread, dist2=apart) / (1 + 1e-9)


@case(6 * 2 + 2, ROUNDING, ("T33", "relative to the right side"))
def t33_rounding(rows):
    # one code: the mean of float32 distances against variance and distance to the mean
    z, c = f32(*parts(rows, (6, 2), (2,)))
    z32, c32 = single(z, c)
    got = total(total((z32 - c32[:, None]) ** 2)) / np.float32(12)
    mean = z.mean(1)
    exact = bound("T33", "upper bound", v=(norm(z - mean[:, None]) ** 2).mean(-1), dist2=norm(c - mean) ** 2)
    return np.abs(got - exact) / (bound("T33", "relative to the right side", B=6, d=2, u=U) * exact) / FIRST_ORDER
