"""Every family on a GPU that is not there: tensors without values show where the host would wait for them."""

from collections.abc import Iterator

import pytest
import torch
from support.families import FAMILIES, batch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

from deq_lightning import (
    GMRES,
    JFB,
    MIND,
    NPG,
    UPG,
    Anderson,
    Broyden,
    EquilibriumReasoner,
    FixedPointIteration,
    Implicit,
    RecursiveReasoner,
    Segment,
)
from deq_lightning.models.observations import Observations

WAITS = (DataDependentOutputException, DynamicOutputShapeException)  # where the host needs a value
SOLVERS = [FixedPointIteration, Anderson, Broyden, GMRES]
NEW = {
    "reasoner": lambda solver: EquilibriumReasoner(in_channels=1, width=8, solver=solver),
    "recursive": lambda solver: RecursiveReasoner(vocab_size=5, num_classes=4, positions=16, width=16, solver=solver),
    "mind": lambda solver: MIND(
        in_channels=1, num_classes=3, image_size=8, widths=(4, 4), head_width=4, introspection_widths=(), solver=solver
    ),
}


@pytest.fixture
def seen_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let every cell be known already; what shows that is looked at once."""
    monkeypatch.setattr(Observations, "takes_apart", lambda self, model, f, z: True)
    monkeypatch.setattr(Observations, "watch_draws", lambda self, f, training, device: None)
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # those of a device that is not there
    yield
    torch.__future__.set_overwrite_module_params_on_conversion(False)


def inputs(family: str) -> torch.Tensor | Segment:
    if family in ("language", "adaptive"):
        return Segment(torch.randint(0, 20, (3, 4)))
    if family == "recursive":
        return torch.randint(0, 5, (3, 16))
    if family == "reasoner":
        return torch.randn(3, 1, 8)
    return torch.randn(3, *(batch("dense" if family == "dense" else "mdeq", 3).shape[1:]))


def forward(family: str, solver: object, gradient: object, training: bool) -> list[torch.Tensor]:
    """Return the tensors of the equilibria."""
    net = {**FAMILIES, **NEW}[family](solver).train(training)
    net.gradient = gradient
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda"):
        net, x = net.to_empty(device="cuda"), inputs(family)
        with torch.no_grad():
            equilibria = net(x)[1]
    return [part for one in equilibria for part in torch.utils._pytree.tree_leaves(one.z)]


@pytest.mark.usefixtures("seen_before")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("family", [*FAMILIES, *NEW])
def test_without_a_tolerance_the_host_never_waits(family: str, training: bool) -> None:
    """And all is on one device. Words of several tables, and samples that a layer is on for, the host must count."""
    if family == "adaptive" or (family == "mind" and not training):
        with pytest.raises(WAITS):
            forward(family, FixedPointIteration(max_steps=4, rtol=0.0), JFB(), training)
        return
    index = [*FAMILIES, *NEW].index(family)
    solver = SOLVERS[index % 4](max_steps=4, rtol=0.0)
    for part in forward(family, solver, [JFB(), UPG(k=2), NPG(k=2), Implicit()][index % 4], training):
        assert part.device.type == "cuda"


@pytest.mark.usefixtures("seen_before")
@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_and_what_a_tolerance_costs(solver: type) -> None:
    assert forward("mdeq", solver(max_steps=6, rtol=0.0), JFB(), True)[0].device.type == "cuda"
    with pytest.raises(WAITS):
        forward("mdeq", solver(max_steps=6, rtol=1e-3), JFB(), True)
