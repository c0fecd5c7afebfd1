"""Every shipped config runs, and its name says what it holds."""

import math
import re
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from support import fake_data
from support.marks import slow

from deq_lightning.cli import main

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
QUICK = {
    "prefix_sums_upg",
    "digits_upg",
    "digits_upg_deblur",
    "mnist_jfb_conv",
    "mnist_implicit_mon_conv",
    "pydocs_mind",
    "proteins_upg",
    "svhn_node",
}
DATA = {
    "sudoku_extreme": fake_data.make_sudoku_extreme,
    "maze_hard": fake_data.make_maze_hard,
    "mnist": fake_data.make_mnist,
    "svhn": fake_data.make_svhn,
    "cifar": fake_data.make_cifar10,
    "cifar100": fake_data.make_cifar100,
    "imagenet": fake_data.make_imagenet,
    "cityscapes": fake_data.make_cityscapes,
    "cox2": partial(fake_data.make_tu, name="COX2", labels=35, graphs=30),
    "proteins": partial(fake_data.make_tu, graphs=30),
    "ppi": fake_data.make_ppi,
    "wikitext2": fake_data.make_wikitext,
    "wikitext103": partial(fake_data.make_wikitext, name="wikitext-103"),
}
# Small enough for a test; sizes are tested with the models.
QUICK_DATA = {
    "prefix": ["--data.train_size", "40", "--data.val_size", "10", "--data.test_size", "2"],
    "mazes": ["--data.train_size", "40", "--data.val_size", "10", "--data.test_size", "2"],
    "sudoku4": ["--data.train_size", "40", "--data.val_size", "10", "--data.test_size", "2"],
    "sudoku6": ["--data.train_size", "40", "--data.val_size", "10", "--data.test_size", "2"],
    "sudoku_extreme": [
        *("--data.batch_size", "2", "--data.train_size", "6", "--data.val_size", "2", "--data.test_size", "3"),
        *("--model.net.width", "16", "--model.net.multiple", "1"),
    ],
    "maze_hard": ["--data.batch_size", "2", "--data.val_size", "2", "--model.net.width", "16"],
    "mnist": ["--data.batch_size", "4", "--data.eval_batch_size", "4"],
    "svhn": ["--data.batch_size", "2", "--data.eval_batch_size", "4"],
    "cifar": ["--data.batch_size", "2"],
    "cifar100": ["--data.batch_size", "2"],
    "dots": ["--data.train_size", "16", "--data.val_size", "8", "--data.test_size", "8"],
    "imagenet": ["--data.batch_size", "2", "--data.image_size", "32"],
    "cityscapes": ["--data.batch_size", "2", "--data.crop_size", "[32, 64]", "--data.scale", "[0.03, 0.06]"],
    "wikitext2": ["--data.batch_size", "4", "--data.eval_batch_size", "4", "--data.vocab_size", "80"],
    "wikitext103": [
        *("--data.batch_size", "4", "--data.eval_batch_size", "4", "--data.segment_length", "50"),
        *("--data.vocab_size", "80"),
    ],
}
QUICK_LANGUAGE = [
    *("--model.net.vocab_size", "80", "--model.net.width", "20", "--model.net.inner_width", "30"),
    *("--model.net.cutoffs", "[10, 20, 40]", "--model.net.div_val", "2"),
]
FAMILIES = {  # by model, because their gradient is the one that they were published with
    **dict.fromkeys(("recursive", "trm", "eqr"), "RecursiveReasoner"),
    **dict.fromkeys(("mind", "cnn", "all"), "MIND"),
}
FROM_FILES = {"mnist", "svhn", "cifar", "cifar100", "imagenet", "cityscapes"}  # of images
QUICK_NET = {
    "MDEQ": ["--model.net.solver.max_steps", "3"],
    "MDEQSegmentation": ["--model.net.channels", "[8, 8, 8, 8]", "--model.net.solver.max_steps", "3"],
    "MONConv": ["--model.net.channels", "4"],
    "MONMultiTier": ["--model.net.channels", "[2, 3, 4]"],
    "NeuralODE": ["--model.net.width", "8"],
    "IGNNSkipNodeClassifier": ["--model.net.widths", "[8, 6]"],
}


def strategy_of(content: dict[str, Any]) -> str:
    """Return the gradient strategy in small letters, or the kind of network where it has no equilibrium."""
    if "gradient" in content:
        return content["gradient"]["class_path"].lower()
    net = content["model"]["init_args"]["net"]
    augmented = net["init_args"].get("augment_channels", 0) > 0
    return {"NeuralODE": "anode" if augmented else "node"}[net["class_path"]]


NARROW_MDEQ = [
    *("--model.net.channels", "[8, 8, 8, 8]", "--model.net.head_channels", "[4, 4, 4, 4]"),
    *("--model.net.final_channels", "16"),
]


def quick(dataset: str, content: dict[str, Any]) -> list[str]:
    """Return what to type beside the config."""
    net = content["model"]["init_args"]["net"]
    options = [*QUICK_DATA.get(dataset, []), *QUICK_NET.get(net["class_path"], [])]
    if dataset in FROM_FILES:
        options += ["--data.val_size", "100" if dataset == "cifar100" else "10", "--data.num_workers", "0"]
    if "head_channels" in net.get("init_args", {}) and dataset in FROM_FILES:
        options += NARROW_MDEQ
    if content.get("gradient", {}).get("init_args", {}).get("pretrain_steps"):
        options += ["--gradient.unroll_steps", "2"]
    if net["class_path"] == "DEQTransformer":
        options += [*(QUICK_LANGUAGE if dataset in DATA else []), "--gradient.pretrain_steps", "0"]  # so that it solves
    if "penalty" in content["model"]["init_args"]:
        options += ["--model.penalty.weight", "0.1", "--model.penalty.frequency", "1"]
    if content["data"]["class_path"] == "Degraded":
        options = [option.replace("--data.", "--data.images.") for option in options]
    return options


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_its_name_says_what_it_holds(config: Path) -> None:
    content = yaml.safe_load(config.read_text())
    own = content["data"].get("init_args", {})
    data = own.get("name", own.get("images", content["data"])["class_path"])
    name = config.stem.replace("prefix_sums", "prefixsums").replace("maze_hard", "mazehard")
    dataset, strategy, *_ = name.replace("sudoku_extreme", "sudoku").split("_")
    assert data.lower().replace("pythondocs", "pydocs").replace("random", "").startswith(dataset.rstrip("46"))
    if strategy in FAMILIES:
        assert content["model"]["init_args"]["net"]["class_path"].startswith(FAMILIES[strategy])
    else:
        assert strategy_of(content) == strategy
    assert config.read_text().startswith(f"# python -m deq_lightning fit --config {config.name}")


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_its_header_names_source_differences_and_results(config: Path) -> None:
    header = list(takewhile(lambda line: line.startswith("#"), config.read_text(encoding="utf-8").splitlines()))
    command, *entries = [line for line in header if not line.startswith("#   ")]
    assert re.match(rf"# python -m deq_lightning fit --config {re.escape(config.name)}( |$)", command)
    assert [re.match(r"# (\w+): \S", entry)[1] for entry in entries] == ["source", "differs", "measured"]
    assert not header[1].startswith("#   ")
    assert len(header) <= 7
    assert max(map(len, header)) <= 120


def one_of_each_family(path: Path) -> object:
    """Return the parameter; the other configs of a family are run with the slow tests."""
    return (pytest.param if path.stem in QUICK else slow)(path, id=path.stem)


@pytest.mark.parametrize("config", map(one_of_each_family, CONFIGS))
def test_it_runs(config: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = next((name for name in ("sudoku_extreme", "maze_hard") if name in config.stem), config.stem.split("_")[0])
    options = quick(dataset, yaml.safe_load(config.read_text()))
    if dataset in DATA:
        DATA[dataset](folder / "data", monkeypatch)
    cli = main(["fit", "--config", config.stem, "--trainer.fast_dev_run", "true", *options])
    assert cli.trainer.global_step == 1
    assert cli.trainer.callback_metrics["train_loss"].isfinite()


@pytest.mark.slow
def test_cifar_runs_three_steps_on_a_root_in_torchvisions_format(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_data.make_cifar10(folder / "elsewhere", monkeypatch)
    cli = main(
        [
            *("fit", "--config", "cifar_upg.yaml", "--trainer.max_steps", "3", "--data.root", "elsewhere"),
            *("--data.batch_size", "4", "--data.val_size", "10", "--data.num_workers", "0"),
            *("--model.net.solver.max_steps", "4", "--trainer.enable_progress_bar", "false"),
        ]
    )
    assert cli.trainer.global_step == 3
    assert (folder / "checkpoints/cifar_upg/last.ckpt").is_file()


@pytest.mark.parametrize(
    "config", [config for config in CONFIGS if "OneCycleLR" in config.read_text()], ids=lambda path: path.stem
)
def test_the_cycle_has_the_published_knots(config: Path) -> None:
    """Piecewise linear in the epoch, to an optimizer step: up in (E − 5) / 2, back until E − 5, and flat."""
    content = yaml.safe_load(config.read_text())
    options = content["model"]["init_args"]["lr_scheduler"]["init_args"]
    epochs, highest, steps = content["trainer"]["max_epochs"], options["max_lr"], math.ceil(45_000 / 128)
    optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)])
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, **options)
    top, middle = (epochs - 5) // 2 * steps, (1e-3 + highest) / 2
    knots = {0: (1e-3, 0.95), top // 2: (middle, 0.9), top: (highest, 0.85), 3 * top // 2: (middle, 0.9)}
    knots |= {2 * top: (1e-3, 0.95), 2 * top + steps: (1e-3, 0.95), epochs * steps: (1e-3, 0.95)}
    for step, (rate, beta) in knots.items():
        optimizer.step()
        scheduler.last_epoch = step - 1
        scheduler.step()
        # Of two steps: PyTorch ends every phase one step early.
        assert optimizer.param_groups[0]["lr"] == pytest.approx(rate, abs=2 * highest / top)
        assert optimizer.param_groups[0]["betas"][0] == pytest.approx(beta, abs=2 * 0.1 / top)
