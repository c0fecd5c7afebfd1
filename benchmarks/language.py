"""Language models: gradients and the penalty on a small text, the solver's budget, NPG's stability, and WikiText-2.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python benchmarks/language.py [--wikitext2 ROOT]

`strategies`: `pydocs_upg` with each gradient, with and without the penalty, and several seeds, beside n-grams on the
same words. `budget`: the model of `pydocs_upg`, evaluated with other numbers of solver steps. `npg`: spectral radius
and perplexity over training with NPG, with the penalty, and with its damping kept at one over the spectral radius.
`wikitext2`: words per second and memory of a training step of `wikitext2_upg` with each gradient on the real text, and
words per second of reading it.

Runs that the JSON has already are not made again.
"""

import json
import math
import tempfile
import time
from argparse import Namespace
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import fmean, median, pstdev
from typing import Any

import pytorch_lightning as pl
import torch
from figures import grid, options_for, save
from kneser_ney import kneser_ney_perplexity
from matplotlib.figure import Figure
from measure import cpu_seconds, interleaved, peak_bytes, ratio, versions

from deq_lightning import NPG, PythonDocs, spectral_radius
from deq_lightning.cli import main as command_line
from deq_lightning.data.text.streams import StreamLoader

ADJOINT = [  # of `pydocs_implicit`
    "--gradient.adjoint_solver=Anderson",
    "--gradient.adjoint_solver.max_steps=12",
    "--gradient.adjoint_solver.history=5",
]
GRADIENTS = {
    "UPG(5, 0.8)": [],
    "NPG(5, 0.8)": ["--gradient=NPG"],
    "JFB": ["--gradient=JFB"],
    "Implicit": ["--gradient=Implicit", *ADJOINT],
    "Unrolled, 12 steps": ["--gradient=Unrolled", "--gradient.unroll_steps=12"],
}
PENALTY = 0.1  # of `pydocs_upg_preln`
BUDGETS = (1, 2, 3, 5, 8, 12, 20, 30)
Run = dict[str, Any]


def penalised(weight: float) -> list[str]:
    """Return the flags of `pydocs_upg_preln`'s penalty with another weight."""
    return [
        "--model.penalty=JacobianPenalty",
        "--model.penalty.weight=0",
        "--model.penalty.frequency=0.4",
        f"--model.penalty.milestones={{100: {weight}}}",
    ]


class Curve(pl.Callback):
    """Keeps the validation figures of every epoch."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take note of what has been logged."""
        del pl_module
        if not trainer.sanity_checking:
            figures = {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("val")}
            self.rows.append({"step": trainer.global_step} | figures)


class DampingByRadius(pl.Callback):
    """Keeps NPG's damping at one over the spectral radius at the equilibria of the training batch.

    Args:
        every: optimizer steps between two estimates.
    """

    def __init__(self, every: int = 25) -> None:
        self.every = every

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Estimate, where it is time."""
        del outputs, batch_idx
        strategy = pl_module.gradient
        if trainer.global_step % self.every == 0 and isinstance(strategy, NPG) and not strategy.unrolled:
            pl_module.eval()
            with torch.no_grad():
                _, ((f, z, _),) = pl_module.loss(batch)
            radius = spectral_radius(f, z).mean().item()
            pl_module.train()
            strategy.damping = min(1.0, 1 / radius)


VARIANTS: dict[str, tuple[list[str], tuple[pl.Callback, ...]]] = {  # what keeps NPG stable
    "λ = 1": ([], ()),
    **{f"λ = 1, penalty {weight}": (penalised(weight), ()) for weight in (PENALTY, 1.0)},
    "λ = 1/ρ": ([], (DampingByRadius(),)),
}
SCALES = {"": [], ", √width": ["--model.net.embedding_scale=8"]}  # of the embeddings


def fit(flags: Iterable[str], epochs: int, seed: int, *callbacks: pl.Callback) -> tuple[Any, Run]:
    """Train `pydocs_upg` with these flags, and test the epoch that validation selects."""
    with tempfile.TemporaryDirectory() as folder:
        options = [
            f"--trainer.max_epochs={epochs}",
            f"--seed_everything={seed}",
            f"--trainer.default_root_dir={folder}",
        ]
        quiet = [
            "--trainer.enable_progress_bar=false",
            "--trainer.enable_model_summary=false",
            "--trainer.logger=false",
        ]
        cli = command_line(["--config", "pydocs_upg", *options, *quiet, *flags], run=False)
        cli.trainer.callbacks += callbacks
        began = time.process_time()
        cli.trainer.fit(cli.model, cli.datamodule)
        seconds = time.process_time() - began
        tested = cli.trainer.test(cli.model, cli.datamodule, ckpt_path="best", verbose=False)[0]
    return cli, tested | {"seconds": seconds, "steps": cli.trainer.global_step}


def remembered(store: dict[str, Run], path: Path, name: str, make: Callable[[], Run]) -> Run:
    """Return the run of this name, made and written down if it is not there yet."""
    if name not in store:
        store[name] = make()
        path.write_text(json.dumps(json.loads(path.read_text()) | {"runs": store}, indent=1))
    return store[name]


def strategies(store: dict[str, Run], options: Namespace) -> None:
    """Print perplexity, spectral radius, residual and time by gradient and penalty."""
    for name, flags in GRADIENTS.items():
        for penalty in (False, True):
            runs = []
            for seed in range(options.seeds):
                key = f"{name}{', penalty' if penalty else ''}, seed {seed}, {options.epochs} epochs"
                flagged = [*flags, *(penalised(PENALTY) if penalty else []), "--monitor.estimate_in_evaluation=true"]
                make = partial(lambda typed, number: fit(typed, options.epochs, number)[1], flagged, seed)
                runs.append(remembered(store, options.json, key, make))
            # Nothing is solved where the gradient is unrolled, and nothing estimated.
            means = {
                each: fmean(run.get(each, math.nan) for run in runs)
                for each in ("test_ppl", "test_spectral_radius", "test_solver_residual", "seconds")
            }
            spread = pstdev(run["test_ppl"] for run in runs)
            print(f"| {name} | {PENALTY if penalty else 'none'} | {means['test_ppl']:.1f} ± {spread:.1f} | ", end="")
            print(f"{means['test_spectral_radius']:.2f} | {means['test_solver_residual']:.1e} | ", end="")
            print(f"{means['seconds']:.0f} |", flush=True)


def ngrams() -> dict[str, float]:
    """Return the perplexities of counting on the same words."""
    data = PythonDocs()
    data.prepare_data()
    data.setup()
    train, test = (data.texts[split].tolist() for split in ("train", "test"))
    rows = {f"{n}-gram": kneser_ney_perplexity(train, test, n, len(data.vocabulary)) for n in (1, 2, 3, 4)}
    print("Kneser-Ney: " + ", ".join(f"{name} {value:.1f}" for name, value in rows.items()), flush=True)
    return rows


def budget(epochs: int) -> Run:
    """Train `pydocs_upg`, and test with other budgets of the solver."""
    cli, run = fit([], epochs, seed=0)
    rows: Run = {"trained": run, "budgets": {}}
    for steps in BUDGETS:
        cli.model.net.solver = type(cli.model.net.solver)(max_steps=steps, rtol=0, history=5)
        tested = cli.trainer.test(cli.model, cli.datamodule, verbose=False)[0]
        rows["budgets"][steps] = {"ppl": tested["test_ppl"], "residual": tested["test_solver_residual"]}
    return rows


def show_budget(rows: Run) -> None:
    """Print perplexity and residual by solver steps."""
    trained = rows["trained"]
    print(f"test perplexity {trained['test_ppl']:.1f} after {trained['steps']} steps in {trained['seconds']:.0f} s")
    for steps, row in rows["budgets"].items():
        print(f"| {steps} | {row['ppl']:.1f} | {row['residual']:.1e} |")


def npg_curve(flags: list[str], epochs: int, *callbacks: pl.Callback) -> Run:
    """Return the curves of one run with NPG."""
    curve = Curve()
    cli, run = fit(["--gradient=NPG", "--monitor.estimate_in_evaluation=true", *flags], epochs, 0, curve, *callbacks)
    return {"curve": curve.rows, "damping": cli.model.gradient.damping, **run}


def npg(store: dict[str, Run], options: Namespace) -> None:
    """Train with NPG by what keeps it stable, with embeddings as configured and at their published scale."""
    for scale, flags in SCALES.items():
        for variant, (more, callbacks) in VARIANTS.items():
            make = partial(npg_curve, ["--gradient.damping=1", *flags, *more], options.epochs, *callbacks)
            run = remembered(store, options.json, npg_key(variant, scale, options.epochs), make)
            last = run["curve"][-1]
            print(f"| {variant}{scale} | {run['test_ppl']:.1f} | {last['val_ppl']:.1f} | ", end="")
            print(f"{last['val_spectral_radius']:.2f} | {run['damping']:.2f} |", flush=True)


def npg_key(variant: str, scale: str, epochs: int) -> str:
    """Return under which name such a run is remembered."""
    return f"NPG, {variant}{scale}, {epochs} epochs"


def draw(store: dict[str, Run], epochs: int) -> Figure:
    """Draw radius and perplexity over training with NPG; broken lines have embeddings at their published scale."""
    figure, axes = grid(1, 2)
    for panel, key, label in zip(
        axes[0], ("val_spectral_radius", "val_ppl"), ("spectral radius", "perplexity"), strict=True
    ):
        for color, variant in enumerate(VARIANTS):
            for scale, style in zip(SCALES, ("-", "--"), strict=True):
                run = store.get(npg_key(variant, scale, epochs), {"curve": []})
                rows = [row for row in run["curve"] if key in row]
                steps, values = [row["step"] for row in rows], [row[key] for row in rows]
                panel.plot(steps, values, style, color=f"C{color}", label=variant + scale)
        panel.set_xlabel("optimizer step")
        panel.set_ylabel(f"{label}, validation")
        panel.set_yscale("log")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(VARIANTS))
    return figure


def wikitext2(root: str, warm: int, rounds: int) -> dict[str, Run]:
    """Count words per second and bytes per word of training steps on the real text, and words per second of reading."""
    actions: dict[str, Callable[[], Any]] = {}
    rows: dict[str, Run] = {}
    for name, flags in GRADIENTS.items():
        cli = command_line(["--config", "wikitext2_upg", "--data.root", root, *flags], run=False)
        cli.datamodule.prepare_data()
        cli.datamodule.setup("fit")
        task, strategy = cli.model, cli.config_init.gradient
        strategy.step = strategy.pretrain_steps  # of the equilibrium, not of the unrolled stage
        task.net.gradient = strategy
        train = partial(step, task, task.make_optimizer(task.parameters()), cli.trainer.gradient_clip_val)
        memory = None
        for batch in islice(cli.datamodule.train_dataloader(), warm + 1):
            batch = batch._replace(memory=memory)
            memory = train(batch)
        actions[name] = partial(train, batch)
        words = batch.tokens.numel()
        rows[name] = {"bytes a word": peak_bytes(actions[name]) / words, "words a step": words}
    times = interleaved(actions, rounds)
    for name, row in rows.items():
        row["words a second"] = row["words a step"] / median(times[name])
        row["over UPG"] = ratio(times, name, next(iter(GRADIENTS)))
        row["memory over Unrolled"] = row["bytes a word"] / rows["Unrolled, 12 steps"]["bytes a word"]
    rows["reading alone"] = {"words a second": words_read(cli.datamodule.train_dataloader(), rounds)}
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(f"{key} {value:.2f}" for key, value in row.items()) + " |")
    return rows


def step(task: Any, optimizer: torch.optim.Optimizer, clip: float, batch: Any) -> Any:
    """Make one training step as the trainer does, and return the memory for the next one."""
    optimizer.zero_grad()
    nll, memory, _ = task.answer(batch)
    nll.mean().backward()
    torch.nn.utils.clip_grad_norm_(task.parameters(), clip)
    optimizer.step()
    return memory


def words_read(loader: StreamLoader, rounds: int) -> float:
    """Return the words per second of the loader without a model, the median over some epochs."""
    words = sum(batch.tokens.numel() for batch in loader)
    return words / median(cpu_seconds(partial(deque, loader, 0)) for _ in range(rounds))


def main() -> None:
    """Print the tables and write the JSON and the figure."""
    parser = options_for("language", __doc__)
    parser.add_argument("--epochs", type=int, default=11)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--wikitext2", default=None, help="Root of the real text. None: without that table.")
    parser.add_argument("--warm", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("strategies", "budget", "npg", "wikitext2"), default=None)
    options = parser.parse_args()
    results = json.loads(options.json.read_text()) if options.json.exists() else {}
    results["versions"] = versions()
    store = results.setdefault("runs", {})
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(results, indent=1))
    print(results["versions"])
    results["ngrams"] = ngrams()
    if options.only in (None, "strategies"):
        strategies(store, options)
    if options.only in (None, "budget"):
        show_budget(remembered(store, options.json, "budget, 21 epochs", partial(budget, 21)))
    if options.only in (None, "npg"):
        npg(store, options)
    if options.wikitext2 and options.only in (None, "wikitext2"):
        results["wikitext2"] = wikitext2(options.wikitext2, options.warm, options.rounds)
    save(options, results | {"runs": store}, draw(store, options.epochs))


if __name__ == "__main__":
    main()
