"""Every shipped config runs, and its name says what it holds."""

from pathlib import Path

import fake_data
import pytest
import yaml

from deq_lightning.cli import main

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))
# Small enough for a test; sizes are tested with the models.
QUICK = {
    "digits": [],
    "mnist": ["--data.batch_size", "4", "--data.eval_batch_size", "4"],
    "cifar": ["--data.batch_size", "2", "--model.net.solver.max_steps", "3"],
    "svhn": ["--data.batch_size", "2", "--model.net.solver.max_steps", "3"],
}
MAKERS = {"mnist": fake_data.make_mnist, "cifar": fake_data.make_cifar10, "svhn": fake_data.make_svhn}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_its_name_says_what_it_holds(config: Path) -> None:
    dataset, strategy, *_ = config.stem.split("_")
    content = yaml.safe_load(config.read_text())
    assert content["data"]["class_path"].lower().startswith(dataset)
    assert content["gradient"]["class_path"].lower() == strategy
    assert config.read_text().startswith(f"# python -m deq_lightning fit --config {config.name}")


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_it_runs(config: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = config.stem.split("_")[0]
    if dataset != "digits":
        MAKERS[dataset](folder / "data", monkeypatch)
        QUICK[dataset] = [*QUICK[dataset], "--data.val_size", "10", "--data.num_workers", "0"]
    cli = main(["fit", "--config", config.stem, "--trainer.fast_dev_run", "true", *QUICK[dataset]])
    assert cli.trainer.global_step == 1
    assert cli.trainer.callback_metrics["train_loss"].isfinite()


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
