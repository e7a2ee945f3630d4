"""Every stated bound, under a search for inputs that break it; the tight families reach it."""

import numpy as np
import pytest
import sympy as sp

from vqverify.symbolic import catalogue, oracles

U, EPS = 2.0**-24, 2.0**-53
FIRST_ORDER = 1.01  # the bounds are first order in u
TIGHT, ROUNDING, ANY = 0.99, 1e-3, 0.0
CASES = {}


def climb(ratio, size, *, seed=0, population=200, rounds=40, scale=4.0):
    """The largest ratio error / bound found over rows of `size` numbers; `ratio` maps (M, size) to (M,)."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(population, size)) * np.exp(rng.uniform(-scale, scale, size=(population, 1)))
    best = 0.0
    with np.errstate(all="ignore"):
        for _ in range(rounds):
            values = np.nan_to_num(np.asarray(ratio(rows), dtype=float), nan=0.0, posinf=np.inf)
            best = max(best, float(values.max()))
            elite = rows[np.argsort(values)[-population // 8 :]]
            children = elite[rng.integers(len(elite), size=population - len(elite))]
            step = np.exp(rng.uniform(-16, 0, size=(len(children), 1)))
            mask = rng.random(children.shape) < rng.uniform(0.1, 1.0, size=(len(children), 1))
            noise = rng.normal(size=children.shape) * np.abs(children).max(axis=1, keepdims=True)
            moved = children + step * noise * mask
            mirrored = np.where(rng.random(children.shape) < 0.05, -children, moved)
            rows = np.concatenate([elite, mirrored])
    return best


def parts(rows, *shapes):
    """Cut rows into arrays (M, *shape)."""
    cut, start = [], 0
    for shape in shapes:
        size = int(np.prod(shape))
        cut.append(rows[:, start : start + size].reshape(len(rows), *shape))
        start += size
    return cut


def f32(*arrays):
    """The float32 values nearest to the arrays, in float64: exact inputs for both computations."""
    found = [np.asarray(array, dtype=np.float32).astype(np.float64) for array in arrays]
    return found if len(found) > 1 else found[0]


def single(*arrays):
    return [np.asarray(array, dtype=np.float32) for array in arrays]


def total(array, axis=-1):
    """A sequential float32 sum."""
    return np.cumsum(array, axis=axis, dtype=np.float32).take(-1, axis=axis)


def bound(theorem, name, **values):
    """A stated bound at float64 arguments."""
    formula = catalogue.derivation(theorem).stated[name]
    symbols = sorted(formula.free_symbols, key=str)
    return sp.lambdify(symbols, formula)(*(values[str(symbol)] for symbol in symbols))


def case(size, floor):
    def register(ratio):
        CASES[ratio.__name__] = (ratio, size, floor)
        return ratio

    return register


def norm(array):
    return np.sqrt((array * array).sum(axis=-1))


def dot32(x, y):
    return total(x * y)


def rotate32(e, q, x, *, transposed):
    """The form of T5, every operation rounded to float32."""
    e, q, x = single(e, q, x)
    e_norm, q_norm = np.sqrt(dot32(e, e)), np.sqrt(dot32(q, q))
    u, v = e / e_norm[:, None], q / q_norm[:, None]
    s = u + v
    w = s / np.sqrt(dot32(s, s))[:, None]
    first, second = (v, u) if transposed else (u, v)
    two = np.float32(2)
    y = x - two * w * dot32(w, x)[:, None] + two * second * dot32(first, x)[:, None]
    return (q_norm / e_norm)[:, None] * y


def geometry(e, q):
    e_norm, q_norm = norm(e), norm(q)
    sigma = norm(e / e_norm[:, None] + q / q_norm[:, None])
    return e_norm, q_norm, sigma, (sigma > 1e-3) & (e_norm > 1e-6) & (q_norm > 1e-6) & (e_norm < 1e6) & (q_norm < 1e6)


@case(12, ROUNDING)
def t02_pairing(rows):
    e, q, g = f32(*parts(rows, (4,), (4,), (4,)))
    _, q_norm, sigma, valid = geometry(e, q)
    back = rotate32(e, q, g, transposed=True).astype(float)
    error = np.abs((e * back).sum(-1) - (q * g).sum(-1))
    return valid * error / (q_norm * norm(g) * (bound("T5", "B1", d=4, sigma=sigma, u=U) + 8 * U)) / FIRST_ORDER


@case(12, ROUNDING)
def t05_backward(rows):
    e, q, g = f32(*parts(rows, (4,), (4,), (4,)))
    e_norm, q_norm, sigma, valid = geometry(e, q)
    error = norm(rotate32(e, q, g, transposed=True) - oracles.rotation_vjp(e, q, g))
    return valid * error / (bound("T5", "B1", d=4, sigma=sigma, u=U) * q_norm / e_norm * norm(g)) / FIRST_ORDER


@case(12, ROUNDING)
def t05_forward(rows):
    e, q, x = f32(*parts(rows, (4,), (4,), (4,)))
    e_norm, q_norm, sigma, valid = geometry(e, q)
    error = norm(rotate32(e, q, x, transposed=False) - oracles.rotation_jvp(e, q, x))
    return valid * error / (oracles.bound_b1(4, sigma, U) * q_norm / e_norm * norm(x)) / FIRST_ORDER


@case(12, ROUNDING)
def t07_equivariance(rows):
    # Q reverses the components and turns two signs: exact in floats
    e, q, x = f32(*parts(rows, (4,), (4,), (4,)))
    e_norm, q_norm, sigma, valid = geometry(e, q)
    signs = np.array([1.0, -1.0, 1.0, -1.0])
    plain = rotate32(e, q, x, transposed=True)[:, ::-1] * signs
    turned = rotate32(*(part[:, ::-1] * signs for part in (e, q, x)), transposed=True)
    return valid * norm(plain - turned.astype(float)) / (2 * oracles.bound_b1(4, sigma, U) * q_norm / e_norm * norm(x))


@case(12, ROUNDING)
def t08_push_pull(rows):
    e, q, g = f32(*parts(rows, (4,), (4,), (4,)))
    e_norm, q_norm, sigma, valid = geometry(e, q)
    lam, c = q_norm / e_norm, (e * q).sum(-1) / (e_norm * q_norm)
    rate = -2 * ((e - q) * (rotate32(e, q, g, transposed=True).astype(float) - g)).sum(-1)
    exact = bound("T8", "d|e−q|²/dη", **{"lambda": lam}, c=c, qg=(q * g).sum(-1), eg=(e * g).sum(-1))
    limit = 2 * oracles.bound_b1(4, sigma, U) * (1 + lam) ** 2 * norm(e - q) * norm(g)
    return valid * np.abs(rate - exact) / limit / FIRST_ORDER


@case(2, ROUNDING)
def t15_scaling(rows):
    g, N = f32(rows[:, 0], np.abs(rows[:, 1]) + 1e-3)
    g32, N32 = single(g, N)
    return np.abs((g32 / N32) * N32 - g) / (2 * U * np.abs(g)) / FIRST_ORDER


def jacobians(e, q):
    basis = np.eye(e.shape[1])
    return np.stack([oracles.rotation_jvp(e, q, np.broadcast_to(b, e.shape)) for b in basis], axis=-1)


@case(6 + 9, TIGHT)
def t03_least_of_all_maps(rows):
    e, q, free = parts(rows, (3,), (3,), (3, 3))
    u = e / norm(e)[:, None]
    away = np.eye(3) - u[:, :, None] * u[:, None, :]
    maps = jacobians(e, q) + np.tanh(norm(free.reshape(-1, 9)))[:, None, None] * 1e-3 * free @ away  # all have A e = q
    least = norm(q - e) / norm(e)
    valid = np.isfinite(maps).all((1, 2)) & (geometry(e, q)[2] > 1e-3)
    return valid * least / np.linalg.norm(np.where(valid[:, None, None], maps, 0) - np.eye(3), 2, axis=(1, 2))


@case(7, TIGHT)
def t03_least_of_rotations(rows):
    e, q, angle = rows[:, :3], rows[:, 3:6], rows[:, 6] * 1e-3
    u = e / norm(e)[:, None]
    cross = np.cross(np.eye(3)[None], u[:, None, :])
    around = np.eye(3) + np.sin(angle)[:, None, None] * cross + (1 - np.cos(angle))[:, None, None] * cross @ cross
    q = q * (norm(e) / norm(q))[:, None]
    rotations = jacobians(e, q) @ around  # R after a turn about û: all rotations with Qû = v̂
    c = (u * q).sum(-1) / norm(q)
    valid = np.isfinite(rotations).all((1, 2)) & (geometry(e, q)[2] > 1e-3)
    moved = np.where(valid[:, None, None], rotations, 0) - np.eye(3)
    return valid * (c < 0.999) * np.sqrt(bound("T3", "‖R−I‖_F²", c=c)) / np.sqrt((moved**2).sum((1, 2))) / (1 + 1e-9)


@case(4 * 3 + 6, TIGHT)
def t09_straight_through(rows):
    # L = Σ a_i cos(b_i x_i + f_i)/b_i + k_i x_i²/2: the gradient is (max |a_i b_i| + |k_i|)-Lipschitz
    a, b, f, k, e, q = parts(rows, (3,), (3,), (3,), (3,), (3,), (3,))

    def slope(x):
        return -a * np.sin(b * x + f) + k * x

    kappa = (np.abs(a * b) + np.abs(k)).max(-1)
    return norm(slope(e) - slope(q)) / oracles.gap_bound_ste(kappa, norm(q - e))


def symmetric(entries, size):
    matrix = entries.reshape(-1, size, size)
    return matrix + matrix.transpose(0, 2, 1)


@case(4 + 2 + 2 + 2, ANY)
def t10_rotation(rows):
    H, p, e, q = symmetric(rows[:, :4], 2), *parts(rows[:, 4:], (2,), (2,), (2,))
    at_e, at_q = (np.einsum("nij,nj->ni", H, x) + p for x in (e, q))
    gap = norm(at_e - oracles.rotation_vjp(e, q, at_q))
    kappa = np.abs(np.linalg.eigvalsh(H)).max(-1)
    valid = geometry(e, q)[2] > 1e-3
    return valid * gap / oracles.gap_bound_rotation(kappa, norm(at_q), norm(e), norm(q - e)) / (1 + 1e-9)


@case(2 + 2 + 2 + 1, TIGHT)
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
    return valid * gap / (oracles.gap_bound_rotation(kappa, norm(g), norm(e), norm(q - e)) + own)


@case(9, TIGHT)
def t11_hessian(rows):
    M, e, q = parts(rows, (3,), (3,), (3,))  # L = Σ M_i x_i³/6
    estimate = M * q**2 / 2 + M * q * (e - q)
    own = 16 * EPS * norm(np.abs(M) * (e**2 + q**2))  # the rounding of this computation
    return norm(M * e**2 / 2 - estimate) / (oracles.gap_bound_hessian(np.abs(M).max(-1), norm(q - e)) + own)


@case(2, ROUNDING)
def t14_forward(rows):
    z, q = f32(rows[:, 0], rows[:, 1])
    z32, q32 = single(z, q)
    y = (z32 + (q32 - z32)).astype(float)
    return np.abs(y - q) / bound("T14", "|y−q| bound", z=z, q=q, u=U) / FIRST_ORDER


@case(3, ROUNDING)
def t16_gradient(rows):
    z, q = f32(rows[:, 0], rows[:, 1])
    beta = f32(np.abs(np.tanh(rows[:, 2])))
    b32, z32, q32 = single(beta, z, q)
    got = (np.float32(1) - b32) * (z32 - q32)
    exact = bound("T16", "A ∂z", z=z, q=q, beta=beta)
    return np.abs(got - exact) / (4 * U * np.abs(exact)) / FIRST_ORDER


@case(8, ROUNDING)
def t17_ema(rows):
    n = 5
    z, c = f32(rows[:, :n], rows[:, n])
    N, gamma = f32(np.abs(rows[:, n + 1]) + 0.1, 0.5 + 0.49 * np.abs(np.tanh(rows[:, n + 2])))
    z32, c32, N32, g32 = single(z, c, N, gamma)
    rest = np.float32(1) - g32
    got = (g32 * (N32 * c32) + rest * total(z32)) / (g32 * N32 + rest * np.float32(n))
    exact = bound("T17", "c'", N=N, c=c, S=z.sum(-1), n=n, gamma=gamma)
    largest = np.maximum(np.abs(c), np.abs(z).max(-1))
    return np.abs(got - exact) / ((n + 8) * U * largest) / FIRST_ORDER


@case(12, ROUNDING)
def t19_conservation(rows):
    K, steps, B = 4, 8, 7.0
    N = f32(np.abs(rows[:, :K]) + 1e-3)
    gamma = f32(0.5 + 0.49 * np.abs(np.tanh(rows[:, K])))
    (counts,), (g32,) = single(N), single(gamma)
    share = np.eye(K)[np.argsort(rows[:, K + 1 : 2 * K + 1], axis=1)[:, 0]] * B
    for _ in range(steps):
        counts = g32[:, None] * counts + (np.float32(1) - g32)[:, None] * share.astype(np.float32)
    exact = bound("T19", "ΣN_t", N_0=N.sum(-1), B=B, gamma=gamma, t=steps)
    return np.abs(total(counts) - exact) / ((K + B + 3 * steps) * U * exact) / FIRST_ORDER


@case(3, ROUNDING)
def t20_drift(rows):
    steps = 50
    c, N = f32(rows[:, 0], np.abs(rows[:, 1]) + 0.1)
    gamma = f32(0.9 + 0.09 * np.abs(np.tanh(rows[:, 2])))
    c32, N32, g32 = single(c, N, gamma)
    m, counts = N32 * c32, N32
    for _ in range(steps):
        m, counts = g32 * m, g32 * counts
    # m₀ = N₀c₀ is itself rounded: one more u
    return np.abs(m / counts - c) / ((2 * steps + 2) * U * np.abs(c)) / FIRST_ORDER


@case(5, TIGHT)
def t21_shrinkage(rows):
    N, eps = np.abs(rows[:, :4]) + 1e-12, np.abs(rows[:, 4]) + 1e-12
    T = N.sum(-1)
    rho = bound("T21", "ρ", N=N.max(-1), T=T, K=4, epsilon=eps)
    return rho / bound("T21", "ρ at most", T=T, K=4, epsilon=eps) / (1 + 1e-12)


@case(9, ROUNDING)
def t22_sharded_sums(rows):
    z = f32(rows)
    (z32,) = single(z)
    got = total(z32[:, :4]) + total(z32[:, 4:])
    return np.abs(got - z.sum(-1)) / ((9 + 6) * U * np.abs(z).sum(-1)) / FIRST_ORDER


@case(7, ROUNDING)
def t23_synchronized(rows):
    g, nu = f32(rows[:, :6], rows[:, 6])
    g32, nu32 = single(g, nu)
    got = total(nu32[:, None] * g32)
    return np.abs(got - nu * g.sum(-1)) / ((6 + 2) * U * np.abs(nu) * np.abs(g).sum(-1)) / FIRST_ORDER


@case(6 + 6 + 1, TIGHT)
def t24_never_increases(rows):
    z, c = rows[:, :6], rows[:, 6:9]
    step = 2 * np.abs(np.tanh(rows[:, 9]))  # ηn in [0, 2]
    distance = (z[:, :, None] - c[:, None, :]) ** 2
    nearest = distance.argmin(-1)
    moved = c.copy()
    for code in range(3):
        chosen = nearest == code
        count = chosen.sum(-1)
        mean = np.where(count > 0, (z * chosen).sum(-1) / np.maximum(count, 1), c[:, code])
        moved[:, code] = c[:, code] + step * (mean - c[:, code])
    after = ((z[:, :, None] - moved[:, None, :]) ** 2).min(-1).sum(-1)
    return after / distance.min(-1).sum(-1) / (1 + 1e-9)


@case(8, ROUNDING)
def t25_affine(rows):
    x, G, a = f32(rows[:, :3], rows[:, 3:6], rows[:, 6])
    x32, G32, a32 = single(x, G, a)
    got = a32 * total(G32 * x32)
    exact = bound("T25", "∂S", a=a, sum_Gx=(G * x).sum(-1))
    return np.abs(got - exact) / ((3 + 4) * U * np.abs(a) * (np.abs(G) * (1 + np.abs(x))).sum(-1)) / FIRST_ORDER


@case(6 + 4, ROUNDING)
def t26_moments(rows):
    z, c = f32(*parts(rows, (6,), (4,)))
    z32, c32 = single(z, c)

    def moments(x, add):
        size = x.dtype.type(x.shape[1])
        mean = add(x) / size
        return mean, np.sqrt(add((x - mean[:, None]) ** 2) / size)

    def mapped(latents, codes, add):
        (mean_e, std_e), (mean_q, std_q) = moments(latents, add), moments(codes, add)
        return (std_e / std_q)[:, None] * (codes - mean_q[:, None]) + mean_e[:, None], std_e / std_q

    got, _ = mapped(z32, c32, total)
    exact, scale = mapped(z, c, lambda x: x.sum(-1))
    limit = (6 + 4 + 10) * U * (np.abs(z).max(-1) + scale * np.abs(c).max(-1))
    return (np.abs(got - exact).max(-1) / limit) / FIRST_ORDER


@case(6 + 6, ROUNDING)
def t28_direct(rows):
    z, c = f32(*parts(rows, (6,), (6,)))
    z32, c32 = single(z, c)
    D = ((z - c) ** 2).sum(-1)
    got = total((z32 - c32) ** 2)
    return np.abs(got - D) / bound("T28", "b, direct", d=6, u=U, D=D) / FIRST_ORDER


@case(6 + 6, ROUNDING)
def t28_expanded(rows):
    z, c = f32(*parts(rows, (6,), (6,)))
    z32, c32 = single(z, c)
    got = (dot32(z32, z32) - np.float32(2) * dot32(z32, c32)) + dot32(c32, c32)
    limit = bound("T28", "b, expanded", d=6, u=U, z_norm=norm(z), c_norm=norm(c))
    return np.abs(got - ((z - c) ** 2).sum(-1)) / limit / FIRST_ORDER


@case(4 + 4 + 5 * 4, ROUNDING)
def t28_regret(rows):
    centre, near, spread = parts(rows, (4,), (4,), (5, 4))
    z, c = f32(1e3 * centre + near, (1e3 * centre)[:, None] + spread)  # far from the origin, where it matters
    z32, c32 = single(z, c)
    got = dot32(z32, z32)[:, None] - np.float32(2) * dot32(z32[:, None], c32) + dot32(c32, c32)
    D = ((z[:, None] - c) ** 2).sum(-1)
    limits = bound("T28", "b, expanded", d=4, u=U, z_norm=norm(z)[:, None], c_norm=norm(c))
    chosen, best = got.argmin(-1)[:, None], D.argmin(-1)[:, None]
    pick = {name: np.take_along_axis(limits, index, 1)[:, 0] for name, index in (("hat", chosen), ("min", best))}
    allowed = bound("T28", "regret bound", D_min=D.min(-1), b_hat=pick["hat"], b_min=pick["min"]) - D.min(-1)
    return (np.take_along_axis(D, chosen, 1)[:, 0] - D.min(-1)) / allowed / FIRST_ORDER


@case(8, ROUNDING)
def t29_half(rows):
    z, c = parts(np.clip(rows, -6e4, 6e4), (4,), (4,))
    rounded = norm(z.astype(np.float16).astype(float) - c.astype(np.float16).astype(float))
    limit = bound("T29", "change of a distance", u_h=2.0**-11, eta=2.0**-25, d=4, z_norm=norm(z), c_norm=norm(c))
    return np.abs(rounded - norm(z - c)) / limit


@case(5 + 1, 0.5)
def t30_concentration(rows):
    D, T = np.abs(rows[:, :5]), np.exp(np.clip(rows[:, 5], -4, 4))
    ordered = np.sort(D, axis=1)
    weights = np.exp(-(D - ordered[:, :1]) / T[:, None])
    p = weights / weights.sum(-1, keepdims=True)
    gap = np.maximum(ordered[:, 1] - ordered[:, 0], 1e-12)
    others = np.sort(p, axis=-1)[:, :-1].sum(-1)  # 1 − p_k without its rounding
    limit = bound("T30", "1 − p_k at most", K=5, Delta=gap, T=T)
    return (limit > 1e-300) * others / limit / (1 + 1e-9)


@case(5 + 1, 0.9)
def t30_range(rows):
    D, T = np.abs(rows[:, :5]), np.exp(np.clip(rows[:, 5], -4, 4))
    weights = np.exp(-(D - D.min(-1, keepdims=True)) / T[:, None])
    p = weights / weights.sum(-1, keepdims=True)
    rho = np.maximum(np.ptp(D, axis=-1), 1e-12)
    high, low = (bound("T30", name, rho=rho, T=T) for name in ("K p_j at most", "K p_j at least"))
    return np.maximum(5 * p.max(-1) / high, low / (5 * p.min(-1))) / (1 + 1e-9)


@case(6, ROUNDING)
def t31_rounding(rows):
    p = f32(np.abs(rows) / np.abs(rows).sum(-1, keepdims=True))
    p32 = single(p)[0]
    got = np.exp(-total(p32 * np.log(np.where(p32 > 0, p32, np.float32(1))))).astype(float)
    exact = np.exp(-(p * np.log(np.where(p > 0, p, 1))).sum(-1))
    return np.abs(got - exact) / ((6 + 8) * U * exact * np.log(6)) / FIRST_ORDER


@case(6, TIGHT)
def t31_perplexity(rows):
    p = np.abs(rows) / np.abs(rows).sum(-1, keepdims=True)
    H = -(p * np.log(np.where(p > 0, p, 1))).sum(-1)
    perplexity = bound("T31", "perplexity", H=H)
    return np.maximum(perplexity / 6, 1 / perplexity) / (1 + 1e-9)


@case(7, 0.5)
def t31_epsilon(rows):
    p = np.abs(rows[:, :6]) / np.abs(rows[:, :6]).sum(-1, keepdims=True)
    eps = np.abs(rows[:, 6]) + 1e-9
    p = np.where(p > 0, p, 1e-300)
    loss = (p * np.log1p(eps[:, None] / p)).sum(-1)
    return loss / bound("T31", "loss of H by ε", K=6, epsilon=eps) / (1 + 1e-9)


@case(6 * 2 + 3 * 2, TIGHT)
def t33_upper(rows):
    z, c = parts(rows, (6, 2), (3, 2))
    loss = ((z[:, :, None] - c[:, None]) ** 2).sum(-1).min(-1).mean(-1) / 2
    mean = z.mean(1)
    spread = ((z - mean[:, None]) ** 2).sum(-1).mean(-1)
    apart = ((c - mean[:, None]) ** 2).sum(-1).min(-1)
    return loss / bound("T33", "upper bound", v=spread, dist2=apart) / (1 + 1e-9)


@case(5, ROUNDING)
def t34_sum(rows):
    q = f32(rows)
    (q32,) = single(q)
    return np.abs(total(q32) - q.sum(-1)) / ((5 + 1) * U * np.abs(q).sum(-1)) / FIRST_ORDER


@pytest.mark.parametrize("name", sorted(CASES))
def test_no_input_breaks_the_bound_and_it_is_not_idle(name):
    ratio, size, floor = CASES[name]
    reached = climb(ratio, size)
    assert floor <= reached <= 1 + 1e-12, f"{name}: the search reached {reached:.4g} of the bound"


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(1, 21))
@pytest.mark.parametrize("name", sorted(CASES))
def test_a_longer_search_does_not_break_it(name, seed):
    ratio, size, _ = CASES[name]
    assert climb(ratio, size, seed=seed, population=800, rounds=120, scale=8.0) <= 1 + 1e-12
