"""The lookup returns the true nearest code: compared with rational arithmetic and float64 differences."""

from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import pytest
import torch

from vqverify.reference import _exact, _products, _tree, directions, nearest_codes
from vqverify.reference import lookup as lookup_module


@pytest.fixture(params=["differences", "products"], autouse=True)
def _path(request, monkeypatch):
    """Small problems take a way of their own: run everything along both."""
    if request.param == "products":
        monkeypatch.setattr(lookup_module, "_SMALL", 0)


def exact(z, codes):
    """Nearest rows by rational arithmetic, lowest index on ties."""
    out = []
    for row in z.double().tolist():
        distances = [
            sum((Fraction(a) - Fraction(b)) ** 2 for a, b in zip(row, code, strict=True))
            for code in codes.double().tolist()
        ]
        out.append(distances.index(min(distances)))
    return torch.tensor(out)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("offset", [0.0, 10.0, 1000.0, 30000.0])
@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 3, 1), (33, 30, 2), (40, 17, 5)])
def test_index_is_exact(dtype, offset, shape):
    n, k, dim = shape
    generator = torch.Generator().manual_seed(n)
    z = (torch.randn(n, dim, generator=generator) + offset).to(dtype)
    codes = (torch.randn(k, dim, generator=generator) + offset).to(dtype)
    assert torch.equal(nearest_codes(z, codes), exact(z, codes))


@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1e-18, 1.0, 1e18, 1e30, 3e37])
def test_magnitudes_do_not_matter(scale):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(20, 3, generator=generator) * scale
    codes = torch.randn(9, 3, generator=generator) * scale
    assert torch.equal(nearest_codes(z, codes), exact(z, codes))


@pytest.mark.parametrize("scale", [5e-324, 1e-200, 1e200, 1e307])
def test_magnitudes_do_not_matter_in_float64(scale):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(20, 3, generator=generator, dtype=torch.float64) * scale
    codes = torch.randn(9, 3, generator=generator, dtype=torch.float64) * scale
    assert torch.equal(nearest_codes(z, codes), exact(z, codes))


@pytest.mark.parametrize("dim", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("dtype", "offset"),
    [(torch.bfloat16, 0.0), (torch.float32, 0.0), (torch.float32, 1000.0), (torch.float64, 1000.0)],
)
def test_tree_agrees_with_the_products(monkeypatch, dim, dtype, offset):
    generator = torch.Generator().manual_seed(dim)
    z = (torch.randn(2100, dim, generator=generator) + offset).to(dtype)
    codes = (torch.randn(4096, dim, generator=generator) + offset).to(dtype)
    assert _tree.suits(z, codes)
    by_tree = nearest_codes(z, codes)
    monkeypatch.setattr(_tree, "suits", lambda z, codes: False)
    assert torch.equal(nearest_codes(z, codes), by_tree)


def test_tree_leaves_broken_numbers_to_the_products():
    z, codes = torch.randn(3000, 2), torch.randn(4096, 2)
    codes[0] = float("nan")
    assert not _tree.suits(z, codes)
    assert (nearest_codes(z[:5], codes) > 0).all()


def test_separated_clusters():
    generator = torch.Generator().manual_seed(1)
    side = torch.tensor([1000.0, -1000.0])
    z = torch.randn(300, 8, generator=generator) + side[torch.arange(300) % 2, None]
    codes = torch.randn(64, 8, generator=generator) + side[torch.arange(64) % 2, None]
    truth = (z.double()[:, None] - codes.double()).square().sum(2).argmin(1)
    assert torch.equal(nearest_codes(z, codes), truth)


def test_ties_go_to_the_lowest_index():
    codes = torch.tensor([[3.0], [1.0], [-1.0], [1.0]])
    z = torch.tensor([[0.0], [1.0], [2.0], [-5.0]])
    assert nearest_codes(z, codes).tolist() == [1, 1, 0, 2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_index_does_not_depend_on_chunk_or_batch(monkeypatch, dtype):
    generator = torch.Generator().manual_seed(2)
    grid = torch.randint(-4, 5, (200, 4), generator=generator).to(dtype)
    codes = torch.randint(-4, 5, (40, 4), generator=generator).to(dtype)
    whole = nearest_codes(grid, codes)
    assert torch.equal(whole, exact(grid, codes))
    assert torch.equal(whole, torch.cat([nearest_codes(row, codes) for row in grid.split(3)]))
    for name, value in (("BUFFER_BYTES", 64), ("_COLUMNS", 7), ("_LEFT", 55)):
        monkeypatch.setattr(_products, name, value)
    monkeypatch.setattr(_exact, "_BLOCK", 50)
    assert torch.equal(whole, nearest_codes(grid, codes))


def _ties(name):
    """Latents (80, 3) and codes (12, 3) of which many are equally near; and whether a grid has them."""
    generator = torch.Generator().manual_seed(4)
    z, codes = (torch.randint(-2, 3, (n, 3), generator=generator).double() for n in (80, 12))
    if name == "off centre":
        return (z / 16 + 1000).float(), (codes / 16 + 1000).float(), True
    if name == "one code off the grid":
        codes[7, 1] += 2.0**-40
    if name == "an entry that vanishes beside the others":
        z, codes = z * 2.0**390, codes * 2.0**390
        codes[codes == 0] = 2.0**-1000
    if name == "a distance that float64 rounds":
        z[0] = 2.0**27
    if name == "too large for differences":
        z, codes = z * 2.0**10 + 2.0**60, codes * 2.0**10 + 2.0**60
    if name == "repeated":
        codes = codes[:3].repeat(4, 1)
        codes[6:][codes[6:] == 0] = -0.0
        return z.float(), codes.float(), True
    if name == "repeated, of any numbers":
        codes = torch.randn(2, 3, generator=generator, dtype=torch.float64).repeat(6, 1)
        return z, codes, False
    return z, codes, name == "small"


@pytest.mark.parametrize(
    "name",
    [
        "small",
        "off centre",
        "one code off the grid",
        "an entry that vanishes beside the others",
        "a distance that float64 rounds",
        "too large for differences",
        "repeated",
        "repeated, of any numbers",
    ],
)
def test_many_ties(name):
    z, codes, on_grid = _ties(name)
    truth = exact(z, codes)
    assert torch.equal(nearest_codes(z, codes), truth)
    table = _exact._grid_table(z, codes)
    assert (table is not None) == on_grid
    if table is not None:
        index = torch.empty(len(z), dtype=torch.int64)
        assert len(list(_products.ranked(z, table, index))) == 1
        assert torch.equal(index, truth)


def test_broken_codes_among_many_ties():
    z, codes, _ = _ties("small")
    codes[:5] = float("nan")
    codes[5] = float("inf")
    assert torch.equal(nearest_codes(z, codes), exact(z, codes[6:]) + 6)


def test_threads_do_not_share_scratch_memory():
    generator = torch.Generator().manual_seed(6)
    jobs = [(torch.randn(500, d, generator=generator), torch.randn(90, d, generator=generator)) for d in (5, 9, 33)] * 4
    alone = [nearest_codes(*job) for job in jobs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for a, b in zip(pool.map(lambda job: nearest_codes(*job), jobs), alone, strict=True):
                assert torch.equal(a, b)


def test_inference_mode_leaves_nothing_behind():
    z, codes = torch.randn(500, 5), torch.randn(90, 5)
    with torch.inference_mode():
        inside = nearest_codes(z, codes)
    assert torch.equal(nearest_codes(z, codes), inside)


def test_two_codes_that_differ_beyond_float64():
    """Distances that agree to 2^-60 relatively are still told apart."""
    z = torch.tensor([[2.0**30, 0.0]])
    codes = torch.tensor([[0.0, 2.0**-20], [0.0, 0.0], [0.0, -(2.0**-21)]])
    assert nearest_codes(z, codes).item() == 1


def test_cosine_sees_directions():
    generator = torch.Generator().manual_seed(3)
    z, codes = torch.randn(50, 6, generator=generator), torch.randn(11, 6, generator=generator)
    index = nearest_codes(z, codes, metric="cosine")
    truth = torch.nn.functional.cosine_similarity(z.double()[:, None], codes.double(), dim=2).argmax(1)
    assert torch.equal(index, truth)
    powers = torch.logspace(-15, 15, 50, base=2)[:, None].round()
    assert torch.equal(nearest_codes(z * 1024, codes * 4, metric="cosine"), index)
    assert torch.equal(nearest_codes(z * (powers + 1), codes, metric="cosine"), index)


@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1.0, 1e30, 3e38])
def test_directions_have_norm_one(scale):
    x = torch.tensor([[0.3, -0.4], [0.0, 1.0], [0.0, 0.0]]) * scale
    assert directions(x).double().norm(dim=1).tolist() == pytest.approx([1, 1, 0], abs=1e-6)


def test_leading_shape_and_empty_batch():
    codes = torch.randn(5, 3)
    assert nearest_codes(torch.randn(2, 4, 3), codes).shape == (2, 4)
    assert nearest_codes(torch.randn(3), codes).shape == ()
    assert nearest_codes(torch.randn(0, 3), codes).shape == (0,)


def test_nan_codes_are_never_chosen():
    codes = torch.tensor([[float("nan"), 0.0], [5.0, 5.0], [float("inf"), 0.0]])
    assert nearest_codes(torch.zeros(2, 2), codes).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("z", "codes", "error", "words"),
    [
        (torch.zeros(2, 3), torch.zeros(4, 2), ValueError, "z must have 2 entries"),
        (torch.zeros(2, 3, dtype=torch.int64), torch.zeros(4, 3), TypeError, "floating-point"),
        (torch.zeros(2, 3), torch.zeros(0, 3), ValueError, "codebook must have shape"),
        (torch.zeros(2, 0), torch.zeros(3, 0), ValueError, "codebook must have shape"),
        (torch.tensor([[0.0], [float("nan")]]), torch.zeros(3, 1), ValueError, "1 of its 2 rows.*: 1"),
        (torch.tensor([[float("inf")]]), torch.zeros(3, 1), ValueError, "z must be finite"),
    ],
)
def test_bad_input_is_named(z, codes, error, words):
    with pytest.raises(error, match=words):
        nearest_codes(z, codes)


def test_autocast_does_not_lower_the_precision():
    generator = torch.Generator().manual_seed(4)
    z, codes = torch.randn(100, 32, generator=generator), torch.randn(50, 32, generator=generator)
    plain = nearest_codes(z, codes)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nearest_codes(z, codes), plain)


def test_operator_is_well_formed():
    torch.library.opcheck(lookup_module._search_op, (torch.randn(8, 3), torch.randn(4, 3)))


def test_precision_settings_of_the_user_do_not_matter_and_stay():
    """ "medium" lets float32 products run in bfloat16, where the CPU can."""
    generator = torch.Generator().manual_seed(5)
    z, codes = torch.randn(400, 64, generator=generator), torch.randn(300, 64, generator=generator)
    plain = nearest_codes(z, codes)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert torch.equal(nearest_codes(z, codes), plain)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_the_precision_is_given_back_by_the_last_thread_that_needs_it():
    """torch has one setting for all threads: the first to end must not lower it under the others."""
    before = torch.get_float32_matmul_precision()
    first, last = _products.full_precision(), _products.full_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        first.__enter__()
        last.__enter__()
        first.__exit__(None, None, None)
        assert torch.get_float32_matmul_precision() == "highest"
        last.__exit__(None, None, None)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.skipif(not hasattr(torch.backends.mkldnn, "matmul"), reason="this torch has the older interface alone")
@pytest.mark.parametrize("low", ["bf16", "tf32"])
def test_the_newer_interface_to_precision_does_not_matter_and_stays(low):
    generator = torch.Generator().manual_seed(5)
    z, codes = torch.randn(400, 64, generator=generator), torch.randn(300, 64, generator=generator)
    plain = nearest_codes(z, codes)
    place = torch.backends.mkldnn.matmul
    before = place.fp32_precision
    try:
        place.fp32_precision = low
        assert torch.equal(nearest_codes(z, codes), plain)
        assert place.fp32_precision == low
    finally:
        place.fp32_precision = before
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_latents_of_a_single_code_are_looked_at_too(bad):
    with pytest.raises(ValueError, match="z must be finite"):
        nearest_codes(torch.tensor([[0.0, 1.0], [bad, 0.0]]), torch.zeros(1, 2))
    assert nearest_codes(torch.tensor([[1e300, 1e300]], dtype=torch.float64), torch.zeros(1, 2)).item() == 0


def test_default_device_does_not_matter():
    """A user whose default is a GPU may still look codes up on the CPU; the device of all data stands in for it."""
    generator = torch.Generator().manual_seed(8)
    z, codes = (torch.randint(2, (n, 3), generator=generator).float() for n in (2000, 50))
    plain = nearest_codes(z, codes)
    with torch.device("meta"):
        assert torch.equal(nearest_codes(z, codes), plain)
