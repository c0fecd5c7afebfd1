"""States as strangers bring them: pytrees, complex numbers, and what is no state."""

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from support.problems import matrix, random, relative_error
from test_edges_of_maps import SOLVERS, every_solver, general_solver, same
from torch import nn
from torch.utils._pytree import register_dataclass, tree_leaves, tree_map

from deq_lightning.estimators import gradient_audit, spectral_radius
from deq_lightning.gradients import JFB, NPG, UPG, Implicit, Unrolled
from deq_lightning.models import ImplicitModel
from deq_lightning.solvers import GMRES, Anderson, Solver, Status
from deq_lightning.state import mix, pack, unpack

# --- what is no state

NO_STATES = {
    "integers": (torch.zeros(2, 4, dtype=torch.long), "A state must be floating-point or complex, got torch.int64."),
    "truths": ((torch.zeros(2, 4), torch.zeros(2, 4) > 0), "A state must be floating-point or complex, got torch.bool"),
    "a number": (torch.tensor(1.0), "Dimension 0 of a state must be the batch, got a tensor without dimensions."),
    "two batches": ([torch.zeros(2, 4), torch.zeros(3, 4)], "must be the batch, got shapes [[2, 4], [3, 4]]."),
    "nothing": ({}, "A state must hold one tensor or more, got none."),
    "an object": ((torch.zeros(2, 4), object()), "A state must be made of tensors, got `object`."),
}


@pytest.mark.parametrize("name", NO_STATES)
@every_solver
def test_edges_what_is_no_state_is_refused(solver, name):
    state, message = NO_STATES[name]
    with pytest.raises(ValueError) as caught:
        SOLVERS[solver]().solve(lambda z: z, state)
    assert message in str(caught.value)


@pytest.mark.parametrize("gradient", [Unrolled(), UPG(), NPG(), JFB(), Implicit()])
def test_edges_no_strategy_truncates_integers(gradient):
    with pytest.raises(ValueError, match=r"must be floating-point or complex, got torch.int64. Use `.float\(\)`"):
        gradient.fixed_point(lambda z: 0.5 * z + 3, torch.zeros(2, 4, dtype=torch.long), Anderson())


# --- pytrees and complex numbers

Pair = namedtuple("Pair", ["a", "b"])


@dataclass
class Fields:
    a: torch.Tensor
    b: torch.Tensor


register_dataclass(Fields)
CONTAINERS = {
    "tuple": (lambda a, b: (a, b), lambda z: z),
    "list": (lambda a, b: [a, b], lambda z: z),
    "dict": (lambda a, b: {"a": a, "b": b}, lambda z: (z["a"], z["b"])),
    "named tuple": (Pair, lambda z: (z.a, z.b)),
    "dataclass": (Fields, lambda z: (z.a, z.b)),
    "nest": (lambda a, b: {"x": [a], "y": {"z": (b,)}}, lambda z: (z["x"][0], z["y"]["z"][0])),
}
W, V = matrix(4, 0.5), random(3, 4, seed=4) / 3


def coupled(a, b, u):
    return torch.tanh(a @ W.T + b.flatten(1) @ V + u), 0.5 * b + a[:, :3, None] / 4


def boxed(name, u):
    box, unbox = CONTAINERS[name]
    return lambda z: box(*coupled(*unbox(z), u))


@pytest.mark.parametrize("name", CONTAINERS)
@general_solver
def test_edges_a_state_may_be_any_pytree(solver, name):
    u = random(2, 4)
    box, unbox = CONTAINERS[name]
    start = torch.zeros(2, 4, dtype=torch.float64), torch.zeros(2, 3, 1, dtype=torch.float64)
    subject = SOLVERS[solver](max_steps=200, rtol=1e-9)
    expected = subject.solve(boxed("tuple", u), start)
    actual = subject.solve(boxed(name, u), box(*start))
    assert type(actual.z) is type(box(*start))
    assert all(map(torch.equal, unbox(actual.z), expected.z)) and same(actual, expected)
    assert (actual.status == Status.converged).all()


@pytest.mark.parametrize("gradient", [Unrolled(), UPG(), UPG(checkpoint=True), NPG(), JFB(), Implicit()])
@pytest.mark.parametrize("name", CONTAINERS)
def test_edges_gradients_of_any_pytree(name, gradient):
    """Values and gradients are those of the tuple."""
    outcomes = []
    for kind in ("tuple", name):
        box, unbox = CONTAINERS[kind]
        u = random(2, 4).requires_grad_()
        z0 = box(torch.zeros(2, 4, dtype=torch.float64), torch.zeros(2, 3, 1, dtype=torch.float64))
        z, _ = gradient.fixed_point(boxed(kind, u), z0, Anderson(60, 1e-10))
        a, b = unbox(z)
        (a.sin().sum() + b.square().sum()).backward()
        outcomes.append((a, b, u.grad))
    assert all(map(torch.equal, *outcomes))
    assert outcomes[0][2].abs().min() > 0


def test_edges_a_dict_may_come_back_in_another_order():
    u, box = random(2, 4), CONTAINERS["dict"][0]
    start = box(torch.zeros(2, 4, dtype=torch.float64), torch.zeros(2, 3, 1, dtype=torch.float64))
    f = boxed("dict", u)
    swapped = Anderson().solve(lambda z: dict(reversed(f(z).items())), start)
    expected = Anderson().solve(f, start)
    assert all(torch.equal(swapped.z[key], expected.z[key]) for key in start) and list(swapped.z) == ["a", "b"]


@pytest.mark.parametrize("gradient", [None, Unrolled(), UPG()])
def test_edges_another_structure_is_refused(gradient):
    message = (
        "`f` must return the structure and shapes of its argument: Pair(a=[2, 4], b=[2, 3]), got ([2, 4], [2, 3])."
    )
    z0 = Pair(torch.zeros(2, 4), torch.zeros(2, 3))
    with pytest.raises(ValueError) as caught:
        if gradient is None:
            Anderson().solve(tuple, z0)
        else:
            gradient.fixed_point(tuple, z0, Anderson())
    assert str(caught.value) == message


COMPLEX = {torch.complex64: 1e-4, torch.complex128: 1e-10}


@pytest.mark.parametrize("dtype", COMPLEX)
@every_solver
def test_edges_complex_states(solver, dtype):
    """z = A z + c, whose real view is a real problem of twice the size; odd widths and a mate of real numbers."""
    tolerance = COMPLEX[dtype]
    a = (0.3 * torch.complex(matrix(3, 1.0), matrix(3, 1.0, seed=1))).to(dtype)
    c = torch.complex(random(2, 3), random(2, 3, seed=3)).to(dtype)
    expected = torch.linalg.solve(torch.eye(3, dtype=dtype) - a, c.T).T
    subject = SOLVERS[solver](max_steps=200, rtol=tolerance / 10)
    alone = subject.solve(lambda z: z @ a.T + c, torch.zeros_like(c))
    assert alone.z.dtype == dtype and alone.residual.dtype == dtype.to_real()
    assert (alone.status == Status.converged).all() and relative_error(alone.z, expected) < 10 * tolerance

    def with_mate(z):
        return {"w": 0.5 * z["w"] + 1, "z": (z["z"] @ a.T + c).conj().conj()}

    mate = subject.solve(with_mate, {"w": torch.zeros(2, dtype=dtype.to_real()), "z": torch.zeros_like(c)})
    assert relative_error(mate.z["z"], expected) < 10 * tolerance
    torch.testing.assert_close(mate.z["w"], torch.full_like(mate.z["w"], 2), rtol=10 * tolerance, atol=0)


def test_edges_a_complex_state_takes_real_answers():
    solution = Anderson().solve(lambda z: 0.5 * z.real + 1, torch.zeros(2, 3, dtype=torch.complex64))
    assert solution.z.dtype == torch.complex64
    torch.testing.assert_close(solution.z, torch.full((2, 3), 2 + 0j), rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    "gradient", [NPG(k=60, damping=1.0), UPG(k=60, damping=1.0), Implicit(adjoint_solver=GMRES(60, 1e-12))]
)
def test_edges_gradients_of_a_complex_state(gradient):
    a = 0.3 * torch.complex(matrix(3, 1.0), matrix(3, 1.0, seed=1))
    outcomes = []
    for exact in (True, False):
        c = torch.complex(random(2, 3), random(2, 3, seed=3)).requires_grad_()
        if exact:
            z = torch.linalg.solve(torch.eye(3, dtype=a.dtype) - a, c.T).T
        else:
            z, _ = gradient.fixed_point(lambda z, c=c: z @ a.T + c, torch.zeros_like(c), Anderson(100, 1e-13))
        (z.real.sin() * z.imag).sum().backward()
        outcomes.append(c.grad)
    assert relative_error(outcomes[1], outcomes[0]) < 1e-7


def test_edges_estimates_on_pytrees_and_complex_states():
    turn = spectral_radius(lambda z: {"z": 0.5j * z["z"]}, {"z": torch.ones(2, 3, dtype=torch.complex128)})
    torch.testing.assert_close(turn, torch.full((2,), 0.5, dtype=torch.float64))
    weight = nn.Parameter(torch.full((2, 4), 0.5, dtype=torch.float64))
    f = lambda z: {"z": weight * z["z"] + 1}  # noqa: E731
    z, g = {"z": torch.full((2, 4), 2.0, dtype=torch.float64)}, {"z": torch.ones(2, 4, dtype=torch.float64)}
    audit = gradient_audit(JFB(), f, z, g, [weight])
    assert audit.cosine.item() == pytest.approx(1) and audit.norm_ratio.item() == pytest.approx(0.5)


class Oscillators(ImplicitModel):
    """A complex and a real state in a dict."""

    def __init__(self, solver: Solver | None = None) -> None:
        super().__init__(solver)
        self.mixing = nn.Linear(4, 4)
        self.out = nn.Linear(8, 3)

    def inject(self, x):
        return x

    def initial_state(self, u):
        return {"phase": torch.zeros(len(u), 4, dtype=torch.complex64), "size": self.zeros(u.shape)}

    def cell(self, z, u):
        size = torch.tanh(self.mixing(z["size"]) / 2 + z["phase"].real + u)
        return {"phase": 0.3j * z["phase"] + u, "size": size}

    def readout(self, z):
        return self.out(torch.cat([z["phase"].imag, z["size"]], dim=1))


@pytest.mark.parametrize("training", [True, False])
def test_edges_a_model_with_a_dict_of_complex_and_real_numbers(training):
    torch.manual_seed(0)
    model = Oscillators(Anderson(60, 1e-6)).train(training)
    logits, (equilibrium,) = model(torch.randn(5, 4))
    assert (equilibrium.solution.status == Status.converged).all()
    gap = tree_map(lambda new, old: (new - old).abs().max(), equilibrium.f(equilibrium.z), equilibrium.z)
    assert max(tree_leaves(gap)) < 1e-5
    logits.sum().backward()
    assert model.mixing.weight.grad.abs().sum() > 0


def test_edges_pack_and_mix_keep_the_structure():
    state = {"z": torch.complex(random(2, 3), random(2, 3, seed=3)), "w": [random(2), random(2, 2, 2).half()]}
    flat = pack(state)
    assert flat.shape == (2, 6 + 1 + 4) and flat.dtype == torch.float64
    back = unpack(flat, state)
    assert list(back) == ["z", "w"] and all(map(torch.equal, tree_leaves(back), tree_leaves(state)))
    mixed = mix(state, tree_map(lambda part: 3 * part, state), 0.5)
    for new, old in zip(tree_leaves(mixed), tree_leaves(state), strict=True):
        torch.testing.assert_close(new, 2 * old)
