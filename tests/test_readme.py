"""What the README says is what happens."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from support.runs import TINY

import deq_lightning
from deq_lightning.cli import main

ROOT = Path(__file__).parent.parent
SAMPLE = ROOT / "checkpoints" / "zoo" / "digits_upg"
README = (ROOT / "README.md").read_text()
COMMANDS = [
    shlex.split(line.split("python -m deq_lightning ")[1])
    for block in re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    for line in block.splitlines()
    if "python -m deq_lightning " in line
]


def test_the_sample_reaches_the_stated_accuracy(folder: Path) -> None:
    stated = re.search(r"that comes with the repository: test_acc (0\.\d+)", README)
    shutil.copytree(SAMPLE, folder / "checkpoints" / "zoo" / "digits_upg")
    (command,) = [command for command in COMMANDS if command[0] == "test"]
    cli = main(command)
    assert stated is not None
    assert f"{cli.trainer.callback_metrics['test_acc']:.4f}" == stated[1]
    assert cli.trainer.callback_metrics["test_solver_converged"] >= 0.95


def test_the_sample_is_small_and_plain() -> None:
    path = SAMPLE / "best.ckpt"
    assert path.stat().st_size < 1_000_000
    torch.load(path, weights_only=True)


@pytest.mark.parametrize("command", [command for command in COMMANDS if "--config" in command], ids=" ".join)
def test_the_training_commands_run(command: list[str], folder: Path) -> None:
    cli = main([*command, "--trainer.fast_dev_run", "true"])
    assert cli.trainer.global_step == 1


def test_a_run_is_continued_as_stated(folder: Path) -> None:
    main(["fit", *TINY, "--trainer.max_epochs", "1"])
    (command,) = [command for command in COMMANDS if command[:2] == ["fit", "--ckpt_path"]]
    cli = main([*command[:-1], "2"])
    assert command[-2:] == ["--trainer.max_epochs", "20"]
    assert cli.trainer.current_epoch == 2


def test_the_python_blocks_run() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        names: dict = {}
        exec(block, names)
        if "OneStep" in names:
            model = deq_lightning.MDEQ(in_channels=1)
            model.gradient = names["OneStep"]()
            model(torch.randn(2, 1, 8, 8))[0].sum().backward()
        if "Tanh" in names:
            y, (equilibrium,) = names["Tanh"]()(torch.randn(2, 1, 8, 8))
            assert y.shape == (2, 10)
            assert (equilibrium.solution.residual < 1e-3).all()


def test_the_model_runs_by_its_flags(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = [one for one in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL) if "class Tanh" in one]
    (folder / "my_package.py").write_text(block)
    monkeypatch.syspath_prepend(folder)
    (flags,) = re.findall(r"`(--model.net my_package.Tanh [^`]*)`", README)
    cli = main(["fit", *TINY[:2], *flags.split(), "--trainer.fast_dev_run", "true"])
    assert type(cli.model.net).__name__ == "Tanh"
    assert type(cli.model.net.solver).__name__ == "Anderson"


def test_the_configs_listed_are_those_shipped() -> None:
    listed = re.search(r"\*\*Configs\*\*.*?\n(  \|.*?)- \*\*", README, flags=re.DOTALL)
    assert listed is not None
    assert sorted(re.findall(r"`(\w+)`", listed[1])) == sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))


def test_headers_and_table_state_the_same() -> None:
    for strategy in ("UPG", "NPG", "JFB", "Implicit"):
        (row,) = [line for line in README.splitlines() if line.startswith(f"| `{strategy}(")]
        accuracy, seconds = re.findall(r"(0\.\d{4} to 0\.\d{4}), (\d+) s \|$", row)[0]
        header = (ROOT / "configs" / f"digits_{strategy.lower()}.yaml").read_text()
        assert f"test_acc {accuracy} in {seconds} s" in header
