"""Trains a small model with every strategy, alone or as one of several processes.

As a script, with LOCAL_RANK and MASTER_PORT in the environment: python -m support.two_processes PROCESSES FILE
It then trains a language model as well, on the text in the current folder.
"""

import os
import sys
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler

from deq_lightning import (
    JFB,
    NPG,
    UPG,
    Broyden,
    Digits,
    GradientStrategy,
    ImageClassification,
    Implicit,
    ImplicitModel,
    Solver,
    Unrolled,
)
from support import text_processes

STRATEGIES = {
    "UPG": UPG,
    "UPG-checkpoint": lambda: UPG(checkpoint=True),
    "NPG": NPG,
    "JFB": JFB,
    "Implicit": Implicit,
    "Implicit-after-a-step": lambda: Implicit(pretrain_steps=1),
    "Unrolled": Unrolled,
}
QUIET = text_processes.QUIET


class Small(ImplicitModel):
    """A cell of two dense layers: no dropout, no statistics over the batch."""

    def __init__(self, solver: Solver) -> None:
        super().__init__(solver)
        torch.manual_seed(0)
        self.encoder, self.decoder = nn.Linear(64, 12), nn.Linear(12, 10)
        self.inner, self.outer = nn.Linear(12, 16), nn.Linear(16, 12)

    def inject(self, x: Tensor) -> Tensor:
        return self.encoder(x.flatten(1))

    def cell(self, z: Tensor, u: Tensor) -> Tensor:
        return torch.tanh(self.outer(torch.tanh(self.inner(z))) + u)

    def readout(self, z: Tensor) -> Tensor:
        return self.decoder(z)


class Gradients(pl.Callback):
    """Keeps the gradient that every optimizer step used."""

    def __init__(self) -> None:
        self.steps: list[Tensor] = []

    def on_before_optimizer_step(self, trainer: pl.Trainer, task: pl.LightningModule, optimizer: object) -> None:
        self.steps.append(torch.cat([parameter.grad.flatten().clone() for parameter in task.parameters()]))


def train(gradient: GradientStrategy, processes: int = 1) -> tuple[Tensor, dict[str, float]]:
    """Return the gradients of three steps on the same images in the same order, and the metrics of the evaluations."""
    gradients, data = Gradients(), Digits()
    data.setup()
    rank = int(os.environ["LOCAL_RANK"]) if processes > 1 else 0
    share = DistributedSampler(data.train_set, processes, rank, shuffle=False)  # Lightning's own would shuffle
    trainer = pl.Trainer(
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        precision="64-true",
        max_epochs=1,
        limit_train_batches=3,
        callbacks=[gradient, gradients],
        **QUIET,
    )
    task = ImageClassification(
        Small(Broyden(max_steps=40, rtol=1e-4)), optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.5)
    )
    trainer.fit(
        task,
        DataLoader(data.train_set, 24 // processes, sampler=share),
        DataLoader(data.val_set, 48 // processes),
    )
    metrics = {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("val")}
    (tested,) = trainer.test(task, DataLoader(data.test_set, 48 // processes), verbose=False)
    return torch.stack(gradients.steps), metrics | tested


if __name__ == "__main__":
    torch.set_num_threads(1)
    results = {name: train(make(), int(sys.argv[1])) for name, make in STRATEGIES.items()}
    results["text"] = [text_processes.train(int(sys.argv[1]), Path(), resume) for resume in (False, True)]
    if torch.distributed.get_rank() == 0:
        torch.save(results, sys.argv[2])
