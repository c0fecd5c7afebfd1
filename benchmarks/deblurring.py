"""Finding blurred digits: learned equilibria, the unrolled network, and what needs no training.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python benchmarks/deblurring.py

Rows of networks are `digits_upg_deblur` with something changed, fitted and then scaled as whole processes; runs that
are in the JSON file already are not run again. The table has the mean PSNR of the test images in decibel: that of the
command, and that after fixed numbers of steps of plain iteration from Aᵀ y. Of the classical methods,
weights are chosen on the validation images.
"""

import csv
import json
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from figures import grid, options_for, save
from measure import versions
from reasoning import command
from torch import Tensor

from deq_lightning import Blur, Degraded, Digits
from deq_lightning.operators import Operator
from deq_lightning.tasks.reconstruction import psnr

CONFIG = "digits_upg_deblur"
UNROLLED = 10
ROWS = {
    "DE-Grad, UPG": "",
    "DE-Grad, JFB": "--gradient JFB",
    "DE-Prox, UPG": "--model.net DEProx",
    "DE-Grad, UPG, a contraction": "--model.net.contraction true",
    f"unrolled, {UNROLLED} steps": f"--gradient Unrolled --gradient.unroll_steps {UNROLLED}",
}
BUDGETS = [2, 5, 10, 20, 50, 200]
WEIGHTS = [0.0003, 0.001, 0.003, 0.01, 0.03, 0.1]


def fitted(changes: str, seed: int) -> dict[str, Any]:
    """Fit in an empty folder; return the PSNR of the test, the seconds, and the PSNR of each budget."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        printed = command(f"fit --config {CONFIG} --seed_everything {seed} {changes}", folder)
        seconds = time.perf_counter() - start
        best = Path(folder, *re.findall(r"^best checkpoint: (\S+)", printed, re.M))
        # The network as a map that is iterated, however it was trained. The solver's last evaluation measures the state
        # that it returns, and JFB's takes the step.
        plain = "--gradient JFB --model.net.solver FixedPointIteration --model.net.solver.keep last --rtol 0"
        command(f"scale --ckpt_path {best} {plain} --budgets {BUDGETS}".replace(", ", ","), folder)
        with best.with_name("scale.csv").open() as file:
            budgets = {int(row["budget"]): float(row["test_psnr"]) for row in csv.DictReader(file)}
        (reached,) = re.findall(r"test_psnr ([\d.]+)", printed)
        return {"psnr": float(reached), "seconds": seconds, "budgets": budgets}


def in_frequencies(y: Tensor, operator: Operator, noise_to_signal: Tensor | float, mean: float = 0.0) -> Tensor:
    """Return what the linear filter of the circular blur finds, for a ratio of the two spectra."""
    point = torch.zeros(1, 1, *y.shape[-2:])
    point[..., 0, 0] = 1
    gain = torch.fft.fft2(operator(point)).real
    return torch.fft.ifft2(torch.fft.fft2(y - mean) * gain / (gain.square() + noise_to_signal)).real + mean


def wiener(y: Tensor, operator: Operator, noise: float, training: Tensor) -> Tensor:
    """Return what the Wiener filter finds, with mean and spectrum of the training images."""
    mean = training.mean()
    spectrum = torch.fft.fft2(training - mean).abs().square().mean(dim=(0, 1)) / training[0, 0].numel()
    return in_frequencies(y, operator, noise**2 / spectrum, mean.item())


def total_variation(y: Tensor, operator: Operator, weight: float, steps: int = 400) -> Tensor:
    """Return the images in [0, 1] with the least ‖A x − y‖² / 2 + weight · TV(x), whose corners are rounded off."""
    x = y.clone().requires_grad_()
    optimizer = torch.optim.Adam([x], lr=0.02)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / steps)
        down, right = x.roll(-1, dims=-2) - x, x.roll(-1, dims=-1) - x
        variation = (down.square() + right.square() + 1e-6).sqrt().sum()
        loss = (operator(x) - y).square().sum() / 2 + weight * variation
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        x.data.clamp_(0, 1)
    return x.detach()


def classical() -> dict[str, float]:
    """Return the PSNR of the methods that need no training."""
    operator, noise = Blur(std=1.0), 0.05  # those of the config
    data = Degraded(Digits(), operator, noise)
    data.setup()
    (_, training), val, (y, x) = (whole(part) for part in (data.train_set, data.val_set, data.test_set))

    def chosen(method: Callable[[Tensor, Operator, float], Tensor]) -> float:
        weight = max(WEIGHTS, key=lambda weight: reached(method(val[0], operator, weight), val[1]))
        return reached(method(y, operator, weight), x)

    return {
        "the observation": reached(y, x),
        "Tikhonov": chosen(in_frequencies),
        "Wiener": reached(wiener(y, operator, noise, training), x),
        "total variation": chosen(total_variation),
    }


def whole(dataset: Any) -> tuple[Tensor, Tensor]:
    """Return all observations and images."""
    pairs = [dataset[number] for number in range(len(dataset))]
    observed, wanted = (torch.stack(part) for part in zip(*pairs, strict=True))
    return observed, wanted


def reached(found: Tensor, wanted: Tensor) -> float:
    """Return the mean PSNR, as the task reports it."""
    return psnr(found.clamp(0, 1), wanted).mean().item()


def picture(runs: Mapping[str, Mapping[str, Any]]) -> Any:
    """Return PSNR over steps."""
    figure, ((axes,),) = grid(1, 1, 6.0, 4.0)
    for name, run in runs.items():
        axes.plot([int(n) for n in run["budgets"]], run["budgets"].values(), "o-", label=name)
    axes.set(xscale="log", xlabel="steps of the iteration", ylabel="test PSNR in decibel")
    axes.legend(fontsize=7)
    return figure


def print_table(plain: Mapping[str, float], runs: Mapping[str, Mapping[str, Any]]) -> None:
    """Print a row for every method."""
    print(f"| | PSNR | seconds | {' | '.join(map(str, BUDGETS))} |\n|{'---|' * (len(BUDGETS) + 3)}")
    for name, value in plain.items():
        print(f"| {name} | {value:.2f} |{' |' * (len(BUDGETS) + 1)}")
    for name, run in runs.items():
        budgets: Sequence[float] = list(run["budgets"].values())
        shown = " | ".join(f"{value:.2f}" for value in budgets)
        print(f"| {name} | {run['psnr']:.2f} | {run['seconds']:.0f} | {shown} |")


def main() -> None:
    """Run what is missing, print the table, write JSON and picture."""
    parser = options_for("deblurring", __doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=list(ROWS), help="names of the rows")
    options = parser.parse_args()
    runs = json.loads(options.json.read_text())["runs"] if options.json.exists() else {}
    plain = classical()
    for name in options.only:
        if name not in runs:
            runs[name] = fitted(ROWS[name], options.seed)
        save(options, {"versions": versions(), "seed": options.seed, "classical": plain, "runs": runs}, picture(runs))
    print_table(plain, runs)


if __name__ == "__main__":
    main()
