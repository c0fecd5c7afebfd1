"""What the library says of arguments, as the command line says it."""

from pathlib import Path

import pytest

from deq_lightning.app.messages import UsageError
from deq_lightning.app.translation import with_flags
from deq_lightning.cli import main
from deq_lightning.configured import CombinationError
from deq_lightning.data import DataError


@pytest.mark.parametrize(
    ("error", "printed"),
    [
        (DataError("Set `root=PATH` to name it."), "Type `--data.root PATH` to name it."),
        (DataError("or set `download=True`."), "or type `--data.download true`."),
        (DataError("for `task=multilabel`"), "for `--data.task multilabel`"),
        (DataError("Set a smaller `batch_size=N`."), "Type a smaller `--data.batch_size N`."),
        (DataError("such as `data=WikiText2`"), "such as `--data WikiText2`"),
        (DataError("`vocab_size` must be 3, `net.vocab_size=4`"), "`vocab_size` must be 3, `--model.net.vocab_size 4`"),
        (DataError("from its `weights=PATH`."), "from its `--weights PATH`."),
        (CombinationError("Set `root=PATH`."), "Set `root=PATH`."),
        (CombinationError("Set `net.solver=Broyden()`."), "Type `--model.net.solver Broyden`."),
        ("use `gradient=UPG(k=5, damping=0.5)`", "use `--gradient UPG --gradient.k 5 --gradient.damping 0.5`"),
        ("`task.multilabel=False`", "`--model.multilabel false`"),
        ("`net.init_std=None`", "`--model.net.init_std null`"),
        ("`net.norm='pre'`", "`--model.net.norm pre`"),
        ("`net.cutoffs=[1, 2]`", "`--model.net.cutoffs '[1, 2]'`"),
        ("loosen `net.rtol`", "loosen `--model.net.rtol`"),
        (UsageError("Type `--data.root PATH`."), "Type `--data.root PATH`."),
    ],
)
def test_arguments_become_flags(error: str | Exception, printed: str) -> None:
    assert with_flags(error) == printed


@pytest.mark.parametrize(
    ("typed", "said"),
    {
        "--model.optimizer Adm": "`--model.optimizer`: there is no class `Adm`. Did you mean Adam",
        "--model.lr_scheduler CosineToEnt": "`--model.lr_scheduler`: there is no class `CosineToEnt`. Did you mean",
        "--model.optimizer.lr fast": "`--model.optimizer.lr`: must be a number (float), got fast.",
        "--model.net.solver.max_steps ten": "`--model.net.solver.max_steps`: must be a whole number (int), got ten.",
        "--model.net.solver.max_steps 0": "`--model.net.solver.max_steps`: `max_steps` must be 1 or more, got 0.",
        "--gradient Implicit --gradient.adjoint_solver GMRES --gradient.adjoint_solver.max_steps 0": "error: "
        "`--gradient.adjoint_solver.max_steps`: `max_steps` must be 1 or more, got 0.",
        "--data.eval_batch_size 0": "`--data.eval_batch_size`: `eval_batch_size` must be 1 or more, got 0.",
        "--model.net.channels 4,8": "`--model.net.channels`: must be a list, got 4,8. Type `[4,8]`.",
        "--model.net.solver.keep first": "`--model.net.solver.keep`: must be best or last, got first.",
        "--best_checkpoint.mode up": "`--best_checkpoint.mode` must be min or max, got up.",
        "--gradent JFB": "there is no `--gradent`. Did you mean gradient",
    }.items(),
)
def test_a_typing_error_names_its_flag(typed: str, said: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["fit", "--config", "digits_upg", *typed.split()])
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line


def test_a_network_that_is_missing_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--model", "ImageClassification", "--data", "Digits"])
    assert (
        "missing: `--model.net`. Type `--model.net NAME`. Known: DEGradient, DEProx, DEQTransformer, "
        in capsys.readouterr().err
    )


def test_subcommands_for_a_checkpoint_ask_for_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["test"])
    assert "missing: what `test` is for. Type `--ckpt_path PATH`" in capsys.readouterr().err
