"""The layers inside a user's training: compilation, checkpointing, autocast, processes, serialisation."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from vqverify.reference import (
    FSQ,
    LFQ,
    SQVAE,
    GroupedVQ,
    GumbelVQ,
    ProjectedCosineVQ,
    ResidualVQ,
    SimVQ,
    VectorQuantizer,
    rotate,
    rotation_vjp,
)

BUILDERS = {
    "ema": lambda: VectorQuantizer(6, 16),
    "gradient": lambda: VectorQuantizer(6, 16, learning="gradient"),
    "cosine": lambda: VectorQuantizer(6, 16, metric="cosine"),
    "affine": lambda: VectorQuantizer(6, 16, learning="gradient", affine="learnable"),
    "moments": lambda: VectorQuantizer(6, 16, learning="gradient", affine="moments"),
    "residual": lambda: ResidualVQ(6, 16, num_quantizers=2),
    "grouped": lambda: GroupedVQ(6, 16),
    "projected": lambda: ProjectedCosineVQ(6, 16, codebook_dim=3),
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("name", BUILDERS)
def test_checkpointing_moves_the_state_once_and_keeps_the_gradient(name, use_reentrant):
    plain = BUILDERS[name]()
    other = copy.deepcopy(plain)
    z = torch.randn(30, 6)
    inputs = [z.clone().requires_grad_() for _ in range(2)]
    for _ in range(3):
        out = plain(inputs[0])
        (out.z_q.square().sum() + out.loss).backward()
        z_q, _, loss = checkpoint(lambda x: tuple(other(x)), inputs[1], use_reentrant=use_reentrant)
        (z_q.square().sum() + loss).backward()
    assert torch.equal(inputs[0].grad, inputs[1].grad)
    for a, b in zip(plain.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)


DRAWING = {
    "replaced": lambda: VectorQuantizer(6, 40, replacement=1),
    "replaced parameter": lambda: VectorQuantizer(6, 40, learning="gradient", replacement=1),
    "k-means": lambda: VectorQuantizer(6, 16, initialisation="kmeans"),
    "k-means, sampled": lambda: VectorQuantizer(6, 16, initialisation="kmeans", temperature=1.0, replacement=1),
}


@pytest.mark.parametrize("name", DRAWING)
def test_checkpointing_gives_what_comes_after_the_same_noise(name):
    """The second run replaces nothing, but a dropout behind the layer must see the mask that it saw in the first."""
    plain = DRAWING[name]()
    other = copy.deepcopy(plain)
    inputs = [torch.randn(30, 6).requires_grad_()]
    inputs.append(inputs[0].detach().clone().requires_grad_())
    for step in range(3):
        torch.manual_seed(step)
        nn.functional.dropout(plain(inputs[0]).z_q).square().sum().backward()
        torch.manual_seed(step)
        z_q = checkpoint(lambda x: nn.functional.dropout(other(x).z_q), inputs[1], use_reentrant=False)
        z_q.square().sum().backward()
        assert torch.equal(inputs[0].grad, inputs[1].grad)
    for a, b in zip(plain.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", BUILDERS)
def test_two_forwards_before_a_backward(name):
    layer = BUILDERS[name]()
    z = torch.randn(30, 6, requires_grad=True)
    first, second = layer(z), layer(z)
    (first.z_q.sum() + first.loss + second.z_q.sum() + second.loss).backward()
    assert z.grad.isfinite().all()
    assert not any(value.requires_grad for _, value in layer.named_buffers())


@pytest.mark.parametrize("name", BUILDERS)
def test_pickle_and_torch_save(name):
    layer = BUILDERS[name]()
    layer(torch.randn(30, 6))
    layer.eval()
    z = torch.randn(5, 6)
    again = pickle.loads(pickle.dumps(layer))
    assert torch.equal(again(z).z_q, layer(z).z_q)
    stream = io.BytesIO()
    torch.save(layer.state_dict(), stream)
    stream.seek(0)
    fresh = BUILDERS[name]().eval()
    fresh.load_state_dict(torch.load(stream, weights_only=True))
    assert torch.equal(fresh(z).z_q, layer(z).z_q)


def test_autocast_keeps_the_state_in_float32():
    model = nn.Sequential(nn.Linear(6, 6), VectorQuantizer(6, 16, decay=0.5))
    reference = copy.deepcopy(model)
    x = torch.randn(40, 6)
    with torch.autocast("cpu", torch.bfloat16):
        z = model[0](x)
        out = model[1](z)
    assert z.dtype == out.z_q.dtype == torch.bfloat16
    assert out.loss.dtype == torch.float32
    reference[1](z.float())
    for a, b in zip(model[1].buffers(), reference[1].buffers(), strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", BUILDERS)
def test_inference_mode_and_no_grad_agree_with_grad(name):
    layer = BUILDERS[name]()
    others = [copy.deepcopy(layer) for _ in range(2)]
    z = torch.randn(30, 6)
    out = layer(z)
    for other, mode in zip(others, (torch.no_grad, torch.inference_mode), strict=True):
        with mode():
            again = other(z)
        assert torch.equal(out.z_q, again.z_q)
        assert torch.equal(out.loss, again.loss)
        for a, b in zip(layer.state_dict().values(), other.state_dict().values(), strict=True):
            assert torch.equal(a, b)
        x = z.clone().requires_grad_()
        (other(x).z_q.sum() + other(x).loss).backward()


def test_strided_inputs_and_inplace_use_of_the_output():
    layer = VectorQuantizer(6, 16).eval()
    z = torch.randn(6, 40)
    assert torch.equal(layer(z.T).codes, layer(z.T.contiguous()).codes)
    assert torch.equal(layer(z[:, :1].T.expand(5, 6)).codes, layer(z[:, :1].T.repeat(5, 1)).codes)
    before = layer.codebook.clone()
    w = torch.randn(4, 6, requires_grad=True)
    out = layer(w)
    out.z_q.relu_().sum().backward()
    assert torch.equal(layer.codebook, before)
    assert w.grad.isfinite().all()


COMPILED = {
    **BUILDERS,
    "straight-through": lambda: VectorQuantizer(6, 16, estimator="straight-through"),
    "fsq": lambda: FSQ([3, 4, 5, 2, 3, 4]),
    "lfq": lambda: LFQ(6),
    "simvq": lambda: SimVQ(6, 16),
}


# inductor traces through parts of torch that warn about themselves
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", COMPILED)
def test_compiles_without_graph_breaks_in_eval(name):
    torch._dynamo.reset()
    layer = COMPILED[name]().eval()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    z = torch.randn(10, 6, requires_grad=True)
    eager, fast = layer(z), compiled(z)
    assert torch.allclose(eager.z_q, fast.z_q, atol=1e-6)
    assert torch.equal(eager.codes, fast.codes)
    assert torch.allclose(eager.loss, fast.loss)
    a, b = (torch.autograd.grad(out.z_q.square().sum() + out.loss, z)[0] for out in (eager, fast))
    assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_compiled_rotation_keeps_the_conventions():
    torch._dynamo.reset()
    z = torch.tensor([[0.0, 0.0], [1.0, 2.0], [1.0, 2.0], [3.0, -1.0]], requires_grad=True)
    q = torch.tensor([[3.0, 4.0], [0.0, 0.0], [-2.0, -4.0], [1.0, 5.0]])
    g = torch.randn(4, 2)
    compiled = torch.compile(rotate, fullgraph=True, backend="aot_eager")(z, q)
    assert torch.equal(compiled, q)
    (received,) = torch.autograd.grad(compiled, z, g)
    assert torch.allclose(received, rotation_vjp(z, q, g), atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(("scale_z", "scale_q"), [(1.0, 1e20), (1e20, 1e20), (1e-25, 1e-25), (1e-30, 1e30)])
def test_compiled_rotation_takes_any_magnitude(scale_z, scale_q):
    torch._dynamo.reset()
    z = (torch.tensor([[3.0, 4.0, 1.0], [1.0, 0.0, 0.0]]) * scale_z).requires_grad_()
    q = torch.tensor([[1.0, -2.0, 2.0], [0.0, 1.0, 1.0]]) * scale_q
    g = torch.tensor([[1.0, 2.0, -1.0], [0.0, 0.0, 0.0]]) * min(1.0, scale_z / scale_q)
    compiled = torch.compile(rotate, fullgraph=True, backend="aot_eager")(z, q)
    assert torch.equal(compiled, q)
    (received,) = torch.autograd.grad(compiled, z, g)
    assert torch.allclose(received, rotation_vjp(z, q, g), rtol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_a_mask_breaks_no_graph():
    torch._dynamo.reset()
    layer, z = LFQ(6).eval(), torch.randn(20, 6)
    mask = torch.arange(20) % 3 > 0
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")(z, mask)
    assert torch.equal(compiled.codes, layer(z, mask).codes)
    assert torch.allclose(compiled.loss, layer(z, mask).loss)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    ("kwargs", "scale"), [({}, 3e38), ({"learning": "gradient", "affine": "moments"}, 1e25)], ids=["sums", "moments"]
)
def test_a_compiled_pass_that_overflows_leaves_the_state_too(kwargs, scale):
    torch._dynamo.reset()
    layer = VectorQuantizer(6, 2, **kwargs)
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(ValueError, match="must be finite"):
        torch.compile(layer, backend="eager")(torch.ones(8, 6) * scale * torch.linspace(0.9, 1, 8)[:, None])
    for a, b in zip(before.values(), layer.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("layer", [GumbelVQ(6, 16), SQVAE(6, 16), SimVQ(6, 16)], ids=lambda layer: type(layer).__name__)
@pytest.mark.parametrize("training", [True, False])
def test_autocast_leaves_the_value_the_code(layer, training):
    layer.train(training)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(torch.randn(30, 6))
    assert torch.equal(layer.decode(out.codes), out.z_q)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_cast_leaves_the_moments_in_float32(dtype):
    layer = VectorQuantizer(6, 16, learning="gradient", affine="moments")
    layer(torch.randn(50, 6))
    before = layer.affine.variance.clone()
    layer.to(dtype)
    assert torch.equal(layer.affine.variance, before)
    assert layer.affine.mean.dtype == torch.float32


def _model():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 4), VectorQuantizer(4, 8, decay=0.5))


def _train(model, batches):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for batch in batches:
        out = model(batch)
        (out.z_q.square().mean() + out.loss).backward()
        optimizer.step()
        optimizer.zero_grad()


def _half_batch(rank, world, folder, z, results):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    torch.manual_seed(0)
    layer = VectorQuantizer(4, 8, replacement=2)
    torch.manual_seed(rank)
    for batch in z:
        layer(batch.chunk(world)[rank])
    late = VectorQuantizer(4, 40, replacement=1, initialisation="kmeans")
    for batch in z:
        # the first process has no latents, to start k-means from or to put in the place of codes
        late(batch, mask=torch.full((len(batch),), rank > 0))
    model = nn.parallel.DistributedDataParallel(_model())
    _train(model, [batch.chunk(world)[rank] for batch in z])
    state = layer.state_dict() | model.module.state_dict() | late.state_dict(prefix="late.")
    results.put((rank, {name: value.numpy() for name, value in state.items()}))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_decode_compiles():
    torch._dynamo.reset()
    layer = VectorQuantizer(6, 16).eval()
    codes = torch.tensor([3, -1, 5])
    compiled = torch.compile(layer.decode, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(codes), layer.decode(codes))


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_two_processes_end_where_one_does(tmp_path):
    torch.manual_seed(0)
    single = VectorQuantizer(4, 8)
    z = torch.randn(2, 60, 4)
    context = torch.multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [context.Process(target=_half_batch, args=(rank, 2, str(tmp_path), z, results)) for rank in range(2)]
    for worker in workers:
        worker.start()
    states = dict(results.get(timeout=120) for _ in workers)
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    for batch in z:
        single(batch)
    model = _model()
    _train(model, z)
    for name, value in (single.state_dict() | model.state_dict()).items():
        assert torch.allclose(torch.from_numpy(states[0][name]), value, atol=1e-6), name
    for name in states[0]:
        assert (states[0][name] == states[1][name]).all()
    # the last batch was put in the place of codes that nobody used
    assert (states[0]["late.codebook"][:, None] == z[-1].numpy()).all(2).any()
