"""The average on the command line."""

from pathlib import Path

import pytest
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging, WeightAveraging
from support.marks import slow
from support.runs import TINY

from deq_lightning import EMA
from deq_lightning.cli import main

FIT = [
    *("fit", *TINY, "--model.lr_scheduler", "null"),
    *("--trainer.max_epochs", "2", "--trainer.limit_train_batches", "4"),
]


@pytest.mark.slow
@pytest.mark.filterwarnings("error:.*(WeightAveraging|'EMA)")
@pytest.mark.parametrize(
    ("options", "kind"),
    [
        (["--ema.decay", "0.7"], EMA),
        slow(
            ["--trainer.callbacks+=EMAWeightAveraging", "--trainer.callbacks.decay=0.7"],
            EMAWeightAveraging,
        ),
    ],
    ids=["ours", "Lightning's"],
)
def test_durable_the_line_at_the_end_is_what_test_says(
    options: list[str], kind: type, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fitted = main([*FIT, *options]).trainer.callback_metrics
    printed = capsys.readouterr().out
    tested = main(["test", "--ckpt_path", "checkpoints/digits_upg/best.ckpt", "--trainer.enable_progress_bar", "false"])
    assert fitted["test_loss"] == tested.trainer.callback_metrics["test_loss"]
    assert f"test_loss {fitted['test_loss']:.4g}  " in printed
    assert not [one for one in tested.trainer.callbacks if isinstance(one, WeightAveraging)]
    saved = torch.load("checkpoints/digits_upg/best.ckpt", weights_only=True)
    differ = [
        name for name, value in saved["current_model_state"].items() if (value != saved["state_dict"][name]).any()
    ]
    assert differ


@pytest.mark.slow
def test_durable_two_and_one_epochs_equal_three(folder: Path) -> None:
    fit = [*FIT, "--ema.decay", "0.7", "--test_after_fit", "false"]
    main([*fit, "--name", "whole", "--trainer.max_epochs", "3"])
    main([*fit, "--name", "parts"])
    torch.manual_seed(5)
    main(["fit", "--ckpt_path", "checkpoints/parts/last.ckpt", "--trainer.max_epochs", "3"])
    whole, parts = (torch.load(f"checkpoints/{run}/last.ckpt", weights_only=True) for run in ("whole", "parts"))
    for state in ("state_dict", "current_model_state"):
        assert all(torch.equal(value, parts[state][name]) for name, value in whole[state].items())
    assert whole["averaging_state"]["n_averaged"] == parts["averaging_state"]["n_averaged"] == 12


def test_by_default_there_is_none(folder: Path) -> None:
    arguments = ["--config", "digits_upg"]
    assert not [one for one in main(arguments, run=False).trainer.callbacks if isinstance(one, EMA)]
    (own,) = [
        one for one in main([*arguments, "--ema.decay", "0.9"], run=False).trainer.callbacks if isinstance(one, EMA)
    ]
    assert own.decay == 0.9


@pytest.mark.parametrize("decay", ["0", *map(slow, ["1", "1.5", "-0.1"])])
def test_decays_out_of_range_are_one_line(decay: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as status:
        main(["fit", "--config", "digits_upg", "--ema.decay", decay])
    assert status.value.code == 2
    assert capsys.readouterr().err == f"error: `--ema.decay`: `decay` must be in (0, 1), got {float(decay)}.\n"
    assert not (folder / "checkpoints").exists()
