"""MDEQ: published sizes, initialisation, frozen dropout, gradients."""

import copy
import pickle

import pytest
import torch

from deq_lightning import (
    JFB,
    MDEQ,
    NPG,
    UPG,
    Broyden,
    FixedPointIteration,
    GradientStrategy,
    Implicit,
    MDEQSegmentation,
    Unrolled,
)
from deq_lightning.models.layers.frozen import WeightNormConv2d

LARGE = dict(channels=(32, 64, 128, 256), head_channels=(14, 28, 56, 112), final_channels=1680)
IMAGENET_SMALL = dict(
    channels=(32, 64, 128, 256),
    head_channels=(24, 48, 96, 192),
    final_channels=2048,
    downsample=2,
    num_classes=1000,
    init_std=None,
)
SMALL = dict(in_channels=1, channels=(4, 8), groups=2, expansion=2, head_channels=(2, 3), final_channels=6)


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


REG = dict(IMAGENET_SMALL, head_channels=(28, 56, 112, 224), post_affine=False)
WIDE = dict(IMAGENET_SMALL, channels=(80, 160, 320, 640), head_channels=(32, 64, 128, 256))


@pytest.mark.parametrize(
    ("size", "parameters"),
    [
        ({}, 158_986),
        ({"post_affine": False}, 158_890),
        ({"weight_norm": "all"}, 159_034),
        (LARGE, 11_098_398),
        (dict(LARGE, post_affine=False), 11_097_438),
        (dict(LARGE, weight_norm="all"), 11_099_998),
        (IMAGENET_SMALL, 16_808_936),
        (dict(IMAGENET_SMALL, weight_norm="blocks"), 16_808_456),
        (REG, 18_613_496),
        (WIDE, 67_063_624),
        (dict(WIDE, post_affine=False), 67_061_224),
        (dict(WIDE, channels=(88, 176, 352, 704), expansion=6), 90_463_280),
    ],
)
def test_published_parameter_counts(size: dict, parameters: int) -> None:
    with torch.device("meta"):
        net = MDEQ(**{**size, "init_std": None})
    assert count(net) == parameters


@pytest.mark.parametrize(
    ("size", "parameters"),
    [
        ({}, 8_968_467),
        ({"channels": (80, 160, 320, 640)}, 55_955_859),
        ({"channels": (88, 176, 352, 704), "expansion": 6}, 79_551_755),
    ],
)
def test_published_parameter_counts_of_segmentation(size: dict, parameters: int) -> None:
    with torch.device("meta"):
        net = MDEQSegmentation(**size, init_std=None)
    assert count(net) == parameters


def test_segmentation_labels_every_pixel_of_the_finest_branch() -> None:
    """The head is a linear map of the branches brought to one size: on constant branches it is the same everywhere."""
    net = MDEQSegmentation(channels=(8, 8, 8), solver=FixedPointIteration(max_steps=3)).eval()
    logits, ((_, z, _),) = net(torch.randn(2, 3, 36, 52))
    assert logits.shape == (2, 19, 9, 13)
    assert [part.shape[2:] for part in z] == [(9, 13), (5, 7), (3, 4)]
    constant = tuple(torch.full_like(part, 0.5 * i) for i, part in enumerate(z))
    values = net.readout(constant)
    torch.testing.assert_close(values, values[:, :, :1, :1].expand_as(values))
    assert {module.momentum for module in net.modules() if isinstance(module, torch.nn.BatchNorm2d)} == {0.01}


def test_published_parts_of_tiny() -> None:
    net = MDEQ()
    assert count(net.stem) == 5_928
    assert count(net.equilibrium_module) == 111_792
    assert count(net.head.bottlenecks) == 7_232
    assert count(net.head.downs) == 18_624
    assert count(net.head.final) == 13_400
    assert count(net.head.classifier) == 2_010


def test_the_first_evaluation_has_unit_rms() -> None:
    net = MDEQ()
    u = net.inject(torch.randn(8, 3, 32, 32))
    z = net.cell(net.initial_state(u), u)
    assert [tuple(part.shape) for part in z] == [(8, 24, 32, 32), (8, 24, 16, 16)]
    for part in z:
        rms = part.detach().square().mean(dim=(1, 2, 3)).sqrt()
        torch.testing.assert_close(rms, torch.ones(8), rtol=0, atol=1e-3)


def test_initialisation_is_the_one_that_was_trained() -> None:
    net = MDEQ()
    for module in net.modules():
        if isinstance(module, WeightNormConv2d):
            weight, std = module.normalised_weight(), (3 * module.weight_v[0].numel()) ** -0.5
        elif isinstance(module, torch.nn.Conv2d):
            weight, std = module.weight, 0.01
        else:
            continue
        assert weight.std().item() == pytest.approx(std, rel=0.15)


def test_imagenet_initialisation_is_pytorchs() -> None:
    assert MDEQ(init_std=None).stem[0][0].weight.std().item() == pytest.approx((3 * 27) ** -0.5, rel=0.15)


def test_the_residual_is_that_of_the_state_under_the_models_own_cell() -> None:
    torch.manual_seed(0)
    net = MDEQ(**SMALL, solver=Broyden(max_steps=20)).double().eval()
    x = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        _, (equilibrium,) = net(x)
        z = net.cell(equilibrium.solution.z, net.inject(x))
    pairs = zip(z, equilibrium.solution.z, strict=True)
    distance = sum((a - b).square().sum(dim=(1, 2, 3)) for a, b in pairs).sqrt()
    scale = sum(a.square().sum(dim=(1, 2, 3)) for a in z).sqrt()
    torch.testing.assert_close(distance / scale, equilibrium.solution.residual, rtol=1e-9, atol=0)


@pytest.mark.parametrize("size", [8, 28, 32, 15])
@pytest.mark.parametrize("branches", [1, 2, 3])
def test_any_image_size_and_number_of_branches(size: int, branches: int) -> None:
    net = MDEQ(
        in_channels=1,
        channels=(4, 8, 8)[:branches],
        groups=4,
        expansion=2,
        head_channels=(2, 2, 2)[:branches],
        final_channels=5,
        num_classes=7,
        solver=FixedPointIteration(max_steps=2),
    )
    assert net(torch.randn(2, 1, size, size))[0].shape == (2, 7)


@pytest.mark.parametrize("gradient", [Implicit(), UPG(), NPG(), JFB(), Unrolled(unroll_steps=4)], ids=str)
def test_every_parameter_gets_a_gradient(gradient: GradientStrategy) -> None:
    torch.manual_seed(0)
    net = MDEQ(**SMALL)
    net.gradient = gradient
    net(torch.randn(4, 1, 8, 8))[0].square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        # A convolution's bias before a BatchNorm has no effect.
        if not name.endswith("0.bias"):
            assert parameter.grad.abs().max() > 0, name


def test_one_dropout_mask_per_forward() -> None:
    torch.manual_seed(0)
    net = MDEQ(**SMALL, dropout=0.5, solver=FixedPointIteration(max_steps=4, rtol=0))
    x = torch.randn(4, 1, 8, 8)
    masks = []
    block = net.equilibrium_module.blocks[0]
    handle = block.dropout.register_forward_hook(lambda module, inputs, output: masks.append(module.mask))
    net(x)
    first = masks.copy()
    assert len(first) == 4 + 5  # the solver's evaluations and the phantom steps
    assert set(first[0].unique().tolist()) == {0, 2}
    assert all(torch.equal(mask, first[0]) for mask in first)
    masks.clear()
    net(x)
    assert not torch.equal(masks[0], first[0])
    handle.remove()


@pytest.mark.parametrize("rtol", [0.0, 1e-3])
def test_a_sample_does_not_see_its_batch_mates(rtol: float) -> None:
    """In evaluation mode, since the BatchNorms of stem and head mix samples in training."""
    torch.manual_seed(0)
    net = MDEQ(**SMALL, solver=Broyden(max_steps=12, rtol=rtol)).double().eval()
    net.gradient = Implicit()

    def run(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = x.clone().requires_grad_()
        y = net(x)[0]
        return y[0].detach(), torch.autograd.grad(y[0].square().sum(), x)[0][0]

    x = torch.randn(4, 1, 8, 8, dtype=torch.float64)
    others = torch.cat([x[:1], 3 * torch.randn(5, 1, 8, 8, dtype=torch.float64)])
    for a, b in zip(run(x), run(others), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_deepcopy_and_pickle() -> None:
    net = MDEQ(**SMALL)
    net(torch.randn(2, 1, 8, 8))[0].sum().backward()
    x = torch.randn(2, 1, 8, 8)
    net.eval()
    expected = net(x)[0]
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(other(x)[0], expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"head_channels": (8,)}, "`head_channels` must have one entry for each"),
        ({"groups": 5}, "`groups` must be even and divide"),
        ({"downsample": 3}, "`downsample` must be one of 0, 1, 2; got 3"),
        ({"dropout": 1.0}, r"`dropout` must be in \[0, 1\), got 1.0"),
    ],
)
def test_impossible_sizes_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MDEQ(**arguments)
