"""Clones for one solve: what they share, what they fix, and that the module itself never changes."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from deq_lightning.gradients import JFB, NPG, UPG, Implicit
from deq_lightning.models.layers.frozen import Freezable, VariationalDropout, WeightNormConv2d, WeightNormLinear, frozen
from deq_lightning.solvers import GMRES, Anderson

CHANNELS = (2, 3)  # dimensions of images that share a mask value


class Cell(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv = WeightNormConv2d(3, 3, 3, padding=1)
        self.drop = VariationalDropout(dropout, CHANNELS)
        self.branches = nn.ModuleList([nn.Sequential(nn.Conv2d(3, 3, 1), nn.GroupNorm(1, 3)), nn.Sequential()])
        self.steps = 0

    def forward(self, z, u):
        return torch.tanh(u + 0.5 * self.drop(self.conv(z)) + 0.1 * self.branches[0](z))


def cell(dropout: float = 0.0) -> Cell:
    torch.manual_seed(0)
    return Cell(dropout).double()


def images(seed: int = 0, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def attributes(module: nn.Module) -> list:
    """Everything that a module and its children hold, by identity."""
    return [(id(m), sorted((k, id(v)) for k, v in vars(m).items() if k[0] != "_")) for m in module.modules()]


@pytest.fixture
def counted(monkeypatch):
    """Count how often a weight is normalised."""
    calls = []
    original = WeightNormConv2d.normalised_weight
    monkeypatch.setattr(WeightNormConv2d, "normalised_weight", lambda self: calls.append(1) or original(self))
    return calls


def test_clones_share_parameters_buffers_and_plain_children():
    module = cell()
    module.register_buffer("statistics", torch.zeros(3))
    clone = frozen(module)
    assert clone is not module and clone.conv is not module.conv and clone.drop is not module.drop
    assert clone.branches is module.branches
    assert type(clone) is Cell and clone.training == module.training
    assert [(n, id(p)) for n, p in clone.named_parameters()] == [(n, id(p)) for n, p in module.named_parameters()]
    clone.statistics.add_(1)
    assert (module.statistics == 1).all()


def test_what_has_nothing_to_freeze_is_not_copied():
    plain = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    assert frozen(plain) is plain


def test_a_module_used_in_two_places_is_one_module_in_the_clone():
    shared = WeightNormConv2d(3, 3, 1)
    clone = frozen(nn.ModuleList([nn.Sequential(shared), shared]))
    assert clone[0][0] is clone[1] is not shared


def test_freezable_children_of_freezable_modules_are_frozen():
    class Outer(Freezable):
        def __init__(self):
            super().__init__()
            self.inner, self.fixed = WeightNormConv2d(3, 3, 1), False

        def freeze(self):
            self.fixed = True

    module = Outer()
    clone = frozen(module)
    assert clone.fixed and clone.inner.frozen_weight is not None
    assert not module.fixed and module.inner.frozen_weight is None


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_module_itself_never_changes(mode):
    module = getattr(cell(dropout=0.5), mode)()
    before, keys = attributes(module), list(module.state_dict())
    clone = frozen(module)
    clone(images(), images(1)).sum().backward()
    assert attributes(module) == before and list(module.state_dict()) == keys
    assert list(clone.state_dict()) == keys


def test_weights_are_computed_once_per_solve_and_reach_their_parameters(counted):
    module, u = cell(), images()
    clone, strategy = frozen(module), Implicit(adjoint_solver=GMRES(100, 1e-12))
    z, _ = strategy.fixed_point(lambda z: clone(z, u), torch.zeros_like(u), Anderson(60, 1e-12))
    (z**2).sum().backward()
    assert len(counted) == 1
    actual = [parameter.grad.clone() for parameter in module.parameters()]

    module.zero_grad()
    z = torch.zeros_like(u)
    for _ in range(80):
        z = module(z, u)
    (z**2).sum().backward()
    assert len(counted) == 81
    for one, other in zip(actual, module.parameters(), strict=True):
        torch.testing.assert_close(one, other.grad, rtol=1e-7, atol=1e-9)


def test_a_clone_keeps_its_weights_when_the_parameters_move():
    """An optimizer step between the solve and an audit must not change the map that was solved."""
    module, z, u = cell(), images(), images(1)
    clone = frozen(module)
    before = clone.conv(z).detach()
    with torch.no_grad():
        module.conv.weight_g.mul_(2)
        module.conv.bias.zero_()
        bias_free = before - clone.conv(z)
    assert bias_free.std(dim=(0, 2, 3)).max() < 1e-12  # the bias is shared, the normalised weight is fixed
    assert not torch.allclose(frozen(module).conv(z), clone.conv(z))
    assert not torch.allclose(frozen(module)(z, u), clone(z, u))


@pytest.mark.parametrize("options", [{}, {"stride": 2, "bias": False}, {"groups": 2, "padding": 1, "dilation": 2}])
@pytest.mark.parametrize("freeze", [False, True])
def test_equals_the_weight_norm_of_torch(options, freeze):
    torch.manual_seed(0)
    ours = WeightNormConv2d(4, 6, 3, **options).double()
    plain = nn.Conv2d(4, 6, 3, **options).double()
    with torch.no_grad():
        plain.weight.copy_(ours.weight_v)
    theirs = weight_norm(plain)
    with torch.no_grad():
        ours.weight_g.mul_(1.7)
        theirs.parametrizations.weight.original0.copy_(ours.weight_g)
        if ours.bias is not None:
            theirs.bias.copy_(ours.bias)
    x = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    actual, expected = (frozen(ours) if freeze else ours)(x), theirs(x)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    weights = theirs.parametrizations.weight
    references = [weights.original0, weights.original1, *([theirs.bias] if ours.bias is not None else [])]
    parameters = [ours.weight_g, ours.weight_v, *([ours.bias] if ours.bias is not None else [])]
    grads = torch.autograd.grad(actual.sin().sum(), parameters)
    torch.testing.assert_close(grads, torch.autograd.grad(expected.sin().sum(), references), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers_equal_the_weight_norm_of_torch(bias):
    torch.manual_seed(0)
    ours = WeightNormLinear(5, 7, bias=bias).double()
    plain = nn.Linear(5, 7, bias=bias).double()
    with torch.no_grad():
        plain.weight.copy_(ours.weight_v)
        if bias:
            plain.bias.copy_(ours.bias)
        theirs = weight_norm(plain)
        ours.weight_g.mul_(torch.linspace(0.5, 2, 7)[:, None])
        theirs.parametrizations.weight.original0.copy_(ours.weight_g)
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    weights = theirs.parametrizations.weight
    actual, expected = frozen(ours)(x), theirs(x)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    grads = torch.autograd.grad(actual.sin().sum(), [ours.weight_g, ours.weight_v])
    references = torch.autograd.grad(expected.sin().sum(), [weights.original0, weights.original1])
    torch.testing.assert_close(grads, references, rtol=1e-10, atol=1e-11)
    assert set(ours.state_dict()) == {"weight_g", "weight_v"} | ({"bias"} if bias else set())


def test_weight_norm_starts_as_the_default_convolution():
    torch.manual_seed(0)
    ours = WeightNormConv2d(3, 5, 3)
    torch.manual_seed(0)
    theirs = nn.Conv2d(3, 5, 3)
    torch.testing.assert_close(ours.normalised_weight(), theirs.weight)
    assert set(dict(ours.named_parameters())) == {"weight_g", "weight_v", "bias"}
    assert ours.weight_g.shape == (5, 1, 1, 1)


def test_weights_follow_loading_and_casting():
    """No stale copy: `load_state_dict` and `.double()` act on the next solve."""
    first, second, z = cell(), Cell().double(), images()
    second.load_state_dict(first.state_dict())
    assert torch.equal(frozen(first).conv(z), frozen(second).conv(z))
    assert frozen(first.float()).conv.frozen_weight.dtype == torch.float32


def test_the_mask_is_the_same_in_every_evaluation_of_a_clone():
    ones = torch.ones(8, 16, 2, 2)
    drop = VariationalDropout(0.25, CHANNELS)
    clone, other = frozen(drop), frozen(drop)
    first = clone(ones)
    assert torch.equal(clone(ones), first) and torch.equal(clone(3 * ones), 3 * first)
    assert not torch.equal(other(ones), first)
    assert not torch.equal(drop(ones), drop(ones))
    torch.testing.assert_close(first.unique(), torch.tensor([0.0, 1 / 0.75]))
    assert torch.equal(first, first[:, :, :1, :1].expand_as(first))
    assert drop.mask is None


@pytest.mark.parametrize("shared", [(), (0, 1), (1,), (2,), (0, 1, 2)])
def test_elements_share_a_mask_value_along_the_shared_dimensions_alone(shared):
    torch.manual_seed(0)
    ones = torch.ones(6, 8, 10)
    dropped = frozen(VariationalDropout(0.5, shared))(ones)
    for dim in range(3):
        first = dropped.narrow(dim, 0, 1).expand_as(dropped)
        assert torch.equal(dropped, first) == (dim in shared)


def test_a_mask_of_another_shape_is_refused():
    drop = frozen(VariationalDropout(0.5, shared=(1,)))
    drop(torch.ones(2, 3, 4))
    drop(torch.ones(2, 7, 4))
    with pytest.raises(ValueError, match=r"is \(2, 1, 4\), for \(1, 3, 4\) it must be \(1, 1, 4\)"):
        drop(torch.ones(1, 3, 4))


def test_the_mask_keeps_the_mean():
    torch.manual_seed(0)
    share = torch.stack([frozen(VariationalDropout(0.3, CHANNELS))(torch.ones(50, 40, 1, 1)).mean() for _ in range(20)])
    assert share.mean().item() == pytest.approx(1, abs=0.02)


def test_dropout_is_the_identity_in_evaluation():
    drop, x = VariationalDropout(0.5).eval(), images()
    assert frozen(drop)(x) is x and drop(x) is x
    assert VariationalDropout(0.0)(x) is x


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5])
def test_bad_dropout_is_refused(p):
    with pytest.raises(ValueError, match=r"must be in \[0, 1\), got"):
        VariationalDropout(p)


@pytest.mark.parametrize("strategy", [JFB(), UPG(k=3), UPG(k=3, checkpoint=True), NPG(), Implicit()], ids=repr)
def test_two_equilibria_of_one_module_are_differentiated_together(strategy):
    """Each keeps its own mask and weights until backward, also where backward evaluates the map again."""
    module, inputs = cell(dropout=0.5), [images(1), images(2)]

    def solve(u):
        clone = frozen(module)
        z, _ = strategy.fixed_point(lambda z: clone(z, u), torch.zeros_like(u), Anderson(40, 1e-10))
        return (z**2).sum()

    torch.manual_seed(3)
    sum([solve(u) for u in inputs]).backward()
    together = [parameter.grad.clone() for parameter in module.parameters()]
    module.zero_grad()
    torch.manual_seed(3)
    for u in inputs:
        solve(u).backward()
    for one, other in zip(together, module.parameters(), strict=True):
        torch.testing.assert_close(one, other.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_modules_can_be_copied_after_use(duplicate):
    module, z, u = cell(dropout=0.3), images(), images(1)
    frozen(module)(z, u).sum().backward()
    module(z, u).sum().backward()
    other = duplicate(module)
    module.eval(), other.eval()
    assert torch.equal(other(z, u), module(z, u))
    assert not {id(p) for p in other.parameters()} & {id(p) for p in module.parameters()}
    with torch.no_grad():
        other.conv.weight_g.mul_(2)
    assert not torch.equal(frozen(other)(z, u), frozen(module)(z, u))
