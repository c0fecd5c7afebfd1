"""Memory, devices, transforms and compilers as strangers bring them."""

import pytest
import torch
from support.problems import matrix, random
from test_edges_of_maps import SOLVERS, every_solver, general_solver
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map

from deq_lightning.estimators import gradient_audit, spectral_radius
from deq_lightning.gradients import JFB
from deq_lightning.models import FPN, MDEQ, MONConv
from deq_lightning.solvers import GMRES, Status
from deq_lightning.solvers.algebra import replace_rows

# --- memory and devices

VIEWS = {
    "odd offset": lambda: torch.arange(81.0)[1:].view(5, 16),
    "transposed": lambda: torch.arange(80.0).view(16, 5).T,
    "every second column": lambda: torch.arange(160.0).view(5, 32)[:, ::2],
    "last columns of a batch of one": lambda: torch.arange(17.0).view(1, 17)[:, 1:],
    "no columns": lambda: torch.zeros(5, 0),
    "no rows": lambda: torch.zeros(0, 16),
    "expanded": lambda: torch.arange(16.0).expand(5, 16),
}


@pytest.mark.parametrize("name", VIEWS)
def test_edges_rows_are_replaced_in_any_memory(name):
    new = VIEWS[name]()
    mask = torch.arange(len(new)) % 2 == 0
    for old in (torch.full(new.shape, -1.0), torch.full((new.numel() + 1,), -1.0)[1:].view(new.shape)):
        assert replace_rows(mask, old, new) is old
        assert torch.equal(old, torch.where(mask[:, None], new, -1.0))


@pytest.mark.parametrize("name", VIEWS)
@every_solver
def test_edges_a_start_may_lie_in_any_memory(solver, name):
    z0 = VIEWS[name]()
    solution = SOLVERS[solver](max_steps=60, rtol=1e-4).solve(lambda z: 0.5 * z + 1, z0)
    assert torch.equal(VIEWS[name](), z0) and (solution.status == Status.converged).all()
    torch.testing.assert_close(solution.z, torch.full(z0.shape, 2.0), rtol=1e-3, atol=0)


@every_solver
def test_edges_a_cell_may_drop_a_column_for_a_batch_of_one(solver):
    layer = nn.Linear(16, 17)
    nn.init.zeros_(layer.weight), nn.init.ones_(layer.bias)
    solution = SOLVERS[solver]().solve(lambda z: layer(z)[:, 1:], torch.zeros(1, 16))
    torch.testing.assert_close(solution.z, torch.ones(1, 16), rtol=2e-3, atol=0)
    assert solution.status == Status.converged


@every_solver
def test_edges_a_solve_on_the_meta_device(solver):
    z0 = {"a": torch.zeros(2, 4, device="meta"), "b": torch.zeros(2, 3, device="meta", dtype=torch.complex64)}
    solution = SOLVERS[solver](max_steps=7).solve(lambda z: tree_map(lambda part: 0.5 * part, z), z0)
    assert [(part.shape, part.dtype, part.is_meta) for part in tree_leaves(solution.z)] == [
        (part.shape, part.dtype, True) for part in z0.values()
    ]
    assert solution.evaluations == 7 and solution.status.shape == (2,)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make", [FPN, lambda: MDEQ(in_channels=1, channels=[8, 8], groups=4), lambda: MONConv(1, 28, 8)]
)
def test_edges_models_are_made_and_tried_on_the_meta_device(make):
    x = torch.randn(2, 1, 28, 28)
    torch.manual_seed(0)
    real = make().eval()
    with torch.device("meta"):
        model = make()
        logits = model(torch.empty_like(x, device="meta"))[0]
        logits.sum().backward()
    assert logits.is_meta and logits.shape == real(x)[0].shape
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.to_empty(device="cpu").load_state_dict(real.state_dict())
    assert torch.equal(model.eval()(x)[0], real(x)[0])


class NoDoubles(FakeTensorMode):
    """Tensors without values, on a device that lacks what Apple's GPUs lack: 64-bit numbers other than integers."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = super().__torch_dispatch__(func, types, args, kwargs)
        for part in tree_leaves(result):
            if isinstance(part, torch.Tensor) and part.device.type == "meta":
                assert part.dtype not in (torch.float64, torch.complex128), func
        return result


@general_solver
def test_edges_nothing_is_doubled_on_an_apple_gpu(solver):
    with NoDoubles():
        weight = torch.empty(16, 16, device="meta")
        f = lambda z: torch.tanh(z @ weight)  # noqa: E731
        solution = SOLVERS[solver](max_steps=6, rtol=0).solve(f, torch.zeros(4, 16, device="meta"))
        radius = spectral_radius(f, solution.z, steps=3)
        parameter = nn.Parameter(weight)
        audit = gradient_audit(
            JFB(), lambda z: torch.tanh(z @ parameter), solution.z, solution.z, [parameter], GMRES(3, 0), GMRES(3, 0)
        )
    assert solution.z.device.type == radius.device.type == "meta"
    assert audit.cosine.shape == ()


# --- transforms and compilers


@general_solver
def test_edges_vmap_over_samples_and_over_parameters(solver):
    x, weights = random(5, 2, 8), torch.stack([matrix(8, 0.5, seed=seed) for seed in range(3)])
    subject = SOLVERS[solver](max_steps=8, rtol=0)

    def solve(weight, x):
        solution = subject.solve(lambda z: torch.tanh(z @ weight + x), torch.zeros(2, 8, dtype=torch.float64))
        return solution.z, solution.residual, solution.status

    for weight, inputs, dims in ((weights[0], x, (None, 0)), (weights, x[0], (0, None))):
        actual = torch.func.vmap(solve, in_dims=dims)(weight, inputs)
        pairs = [(weight, one) for one in inputs] if dims[0] is None else [(one, inputs) for one in weight]
        for number, pair in enumerate(pairs):
            for part, expected in zip(actual, solve(*pair), strict=True):
                torch.testing.assert_close(part[number], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("solver", ["plain", "broyden"])
def test_edges_a_solve_of_a_pytree_is_one_graph(solver):
    weight, subject = random(8, 8).float() / 8, SOLVERS[solver](max_steps=4, rtol=0)

    def solve(z0):
        f = lambda z: {"a": torch.tanh(z["a"].clone().relu_() @ weight + 1), "b": 0.5j * z["b"] + 1}  # noqa: E731
        solution = subject.solve(f, {"a": z0, "b": z0[:, :3].to(torch.complex64)})
        return solution.z["a"], solution.z["b"], solution.residual

    compiled = torch.compile(solve, fullgraph=True, backend="aot_eager")
    for actual, expected in zip(compiled(torch.zeros(4, 8)), solve(torch.zeros(4, 8)), strict=True):
        torch.testing.assert_close(actual, expected)
