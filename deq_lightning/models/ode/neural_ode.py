"""Neural ODEs, plain and augmented: the baselines without an equilibrium in the MON and JFB papers."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchdiffeq import odeint_adjoint

from deq_lightning.configured import CombinationError, RunError, above, sizes, whole
from deq_lightning.models.base import Equilibrium, Network
from deq_lightning.precision import full_precision


class IntegrationError(RunError):
    """A Neural ODE cannot be integrated; the message says where it stopped, why, and what to change."""


class ConvDynamics(nn.Module):
    """f(t, h): convolutions of size 1, 3 and 1 with ReLU between them, the same for every time unless told otherwise.

    Args:
        channels: channels of the state h.
        width: channels between the convolutions.
        time_dependent: whether every convolution sees t as one more, constant channel.

    Shapes:
        Time () and state (batch, channels, height, width) to the derivative, of the state's shape.
    """

    def __init__(self, channels: int, width: int, time_dependent: bool) -> None:
        super().__init__()
        self.time_dependent = time_dependent
        time = int(time_dependent)
        self.convs = nn.ModuleList(
            [
                nn.Conv2d(channels + time, width, 1),
                nn.Conv2d(width + time, width, 3, padding=1),
                nn.Conv2d(width + time, channels, 1),
            ]
        )

    def forward(self, t: Tensor, h: Tensor) -> Tensor:
        """Return dh/dt."""
        first, second, third = self.convs
        h = F.relu(first(self._with_time(t, h)))
        h = F.relu(second(self._with_time(t, h)))
        return third(self._with_time(t, h))

    def _with_time(self, t: Tensor, h: Tensor) -> Tensor:
        if not self.time_dependent:
            return h
        return torch.cat([t.to(h).expand(h.shape[0], 1, *h.shape[2:]), h], dim=1)


class Counted(nn.Module):
    """Dynamics in full precision that count their evaluations and refuse to be integrated for ever.

    Args:
        f: the dynamics, a map of (t, h).
        max_steps: steps that a solve may take.
    """

    def __init__(self, f: nn.Module, max_steps: int) -> None:
        super().__init__()
        self.f = f
        self.max_steps = max_steps
        self.begin()

    def begin(self) -> None:
        """Count from zero."""
        self.evaluations = 0
        self.steps = 0

    def forward(self, t: Tensor, h: Tensor) -> Tensor:
        """Return dh/dt."""
        self.evaluations += 1
        with full_precision(h.device.type):  # rounding would pass for error, and shorten the steps
            return self.f(t, h)

    def callback_step(self, t: Tensor, h: Any, dt: Tensor) -> None:
        """Count a step of either solve; torchdiffeq calls this before it is taken."""
        # torchdiffeq's own assertions say neither which setting is meant nor, from a backward pass, whose they are.
        if self.steps == self.max_steps:
            raise IntegrationError(
                f"the Neural ODE was given up at t = {t.item():.3g}, after {self.max_steps} steps. Raise "
                "`net.max_steps`, loosen `net.rtol` and `net.atol`, or, for dynamics that stay simpler, set "
                "`optimizer.weight_decay=1e-4`."
            )
        parts = h if isinstance(h, tuple) else (h,)  # backwards: the state, its adjoint, the parameters' gradients
        if t + dt == t or not torch.stack([part.isfinite().all() for part in parts]).all():
            raise IntegrationError(
                f"the Neural ODE was given up at t = {t.item():.3g}: values are not finite, or the dynamics too fast. "
                "Lower `optimizer.lr`, loosen `net.rtol` and `net.atol`, or set `optimizer.weight_decay=1e-4`."
            )
        self.steps += 1

    callback_step_adjoint = callback_step


class NeuralODE(Network):
    r"""Neural ODE, plain or augmented: :math:`h(0) = x`, :math:`\dot h = f(t, h)`, and a linear layer on h(1).

    Solved by Dormand-Prince of order 5 with adaptive steps, and differentiated by a second such solve backwards in time
    (the adjoint method), whose memory does not grow with the number of steps. One step size serves the whole batch, so
    that a sample's answer depends on its batch mates within the tolerance. After a forward pass `evaluations` holds how
    often f was evaluated in it, and after a backward pass `backward_evaluations` how often in that: the papers' NFE.

        dataset         width   augment_channels   parameters   with time
        MNIST              92                  0       84,395      85,316
        MNIST              64                  5       84,816      85,462
        CIFAR-10, SVHN    125                  0      172,358     173,611
        CIFAR-10, SVHN     64                 10      171,799     172,452

    The papers' 84K and 172K are those without time.

    Args:
        in_channels: channels of an image.
        image_size: height and width of an image in pixels.
        num_classes: classes to predict.
        width: channels between the three convolutions of f, 1 or more.
        augment_channels: channels of zeros that are added to the image, 0 or more; 0 is the plain Neural ODE.
        time_dependent: whether f sees the time, as one more channel of each convolution.
        rtol: relative tolerance of a step, above 0, for both solves.
        atol: absolute tolerance of a step, above 0, for both solves.
        max_steps: steps that each solve may take before the run is given up, 1 or more. A step is six evaluations.

    Shapes:
        Images (batch, in_channels, image_size, image_size) to logits (batch, num_classes). There is no equilibrium.

    Raises:
        ValueError: if an argument is out of its range.
        IntegrationError: from a forward or backward pass, if the steps do not suffice or values are not finite.

    References:
        Chen et al., "Neural ordinary differential equations", NeurIPS 2018, arXiv:1806.07366. Dupont, Doucet and Teh,
        "Augmented neural ODEs", NeurIPS 2019, arXiv:1904.01681.
    """

    def __init__(
        self,
        in_channels: int = 1,
        image_size: int = 28,
        num_classes: int = 10,
        width: int = 92,
        augment_channels: int = 0,
        time_dependent: bool = False,
        rtol: float = 1e-3,
        atol: float = 1e-3,
        max_steps: int = 1000,
    ) -> None:
        super().__init__()
        sizes(in_channels=in_channels, image_size=image_size, num_classes=num_classes, width=width)
        sizes(0, "0 is the plain Neural ODE.", augment_channels=augment_channels)
        whole(1, "Leave it out for the usual 1000.", max_steps=max_steps)
        above(0, "Leave it out for the usual 1e-3.", rtol=rtol, atol=atol)
        self.augment_channels = augment_channels
        self.rtol = rtol
        self.atol = atol
        self.evaluations = 0
        channels = in_channels + augment_channels
        self.dynamics = Counted(ConvDynamics(channels, width, time_dependent), max_steps)
        self.head = nn.Linear(channels * image_size**2, num_classes)

    @property
    def backward_evaluations(self) -> int:
        """How often f was evaluated in the last backward pass; 0 if there was none since the last forward pass."""
        return self.dynamics.evaluations

    def augment(self, x: Tensor) -> Tensor:
        """Return h(0): the images, and channels of zeros behind theirs."""
        # In the dtype of the parameters: under autocast the state stays in full precision.
        return F.pad(x.to(self.head.weight.dtype), (0, 0, 0, 0, 0, self.augment_channels))

    def integrate(self, h: Tensor) -> Tensor:
        """Return h(1) from h(0).

        Raises:
            CombinationError: if the network is exported.
        """
        if torch.compiler.is_exporting():
            raise CombinationError(
                "`NeuralODE` takes as many steps as its input asks for, and cannot be exported. Export a network with "
                "an equilibrium."
            )
        self.dynamics.begin()
        times = h.new_tensor([0.0, 1.0])
        if h.is_meta:  # which has no values for steps to depend on
            return h + self.dynamics(times[0], h)
        end = odeint_adjoint(self.dynamics, h, times, rtol=self.rtol, atol=self.atol, method="dopri5")[-1]
        self.evaluations = self.dynamics.evaluations
        self.dynamics.begin()
        if end.requires_grad:
            end.register_hook(lambda gradient: self.dynamics.begin())  # one for each backward pass, before its solve
        return end

    def forward(self, x: Tensor) -> tuple[Tensor, list[Equilibrium]]:
        """Return the logits, and no equilibrium."""
        return self.head(self.integrate(self.augment(x)).flatten(1)), []

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile f, which is what is evaluated many times, with the arguments of `torch.compile`."""
        torch._functorch.config.donated_buffer = False  # torchdiffeq retains the graph of every evaluation
        self.dynamics.f.compile(*args, **kwargs)
