"""The `scale` command: its figures are those of tests with other budgets."""

import csv
import json
from pathlib import Path

import pytest
import torch
from support.marks import slow
from support.runs import BITS, QUIET, TINY

import deq_lightning
from deq_lightning import FixedPointIteration, PrefixSums
from deq_lightning.app.tables import show_line
from deq_lightning.cli import main
from deq_lightning.tasks.restarts import votes


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open()))


def test_the_figures_are_those_of_other_budgets(best: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    main(["scale", "--ckpt_path", best, "--budgets", "2,9", "--rtol", "0.1", *QUIET])
    printed = capsys.readouterr().out
    rows = table(Path("checkpoints/run/scale.csv"))
    assert [(row["set"], row["budget"]) for row in rows] == [("4", "2"), ("4", "9"), ("6", "2"), ("6", "9")]
    task = deq_lightning.load(best)
    data = PrefixSums(4, test_lengths=[4, 6], train_size=8, val_size=2, test_size=4)
    data.setup("test")
    for row in rows:
        task.net.solver = FixedPointIteration(int(row["budget"]), rtol=0.1)
        x, y = next(iter(data.test_dataloader()[["4", "6"].index(row["set"])]))
        with torch.no_grad():
            logits, (equilibrium,) = task.net(x)
        right = logits.argmax(1) == y
        assert float(row["test_acc"]) == pytest.approx(right.float().mean().item())
        assert float(row["test_exact_acc"]) == pytest.approx(right.all(1).float().mean().item())
        assert float(row["test_solver_steps"]) == pytest.approx(equilibrium.solution.steps.float().mean().item())
        assert float(row["test_solver_residual"]) == pytest.approx(
            equilibrium.solution.residual.mean().item(), rel=1e-4
        )
        converged = (equilibrium.solution.status == 0).float().mean().item()
        assert float(row["test_solver_converged"]) == pytest.approx(converged)
        assert (row["path_independence"] != "") == (row["budget"] == "9")
    saved = json.loads(Path("checkpoints/run/scale.json").read_text())
    assert (saved["rtol"], saved["restarts"], len(saved["rows"])) == (0.1, 1, 4)
    assert Path("checkpoints/run/scale.png").read_bytes().startswith(b"\x89PNG")
    assert printed.startswith("rtol 0.1, restarts 1\n") and "results: checkpoints/run/scale.csv" in printed
    assert "x size" not in printed  # some did not stop by themselves


def test_the_budgets_by_default_reach_the_models_own(best: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["scale", "--ckpt_path", best, "--model.net.solver.eval_max_steps", "170", "--model.net.solver.rtol", "0.5"])
    rows = table(Path("checkpoints/run/scale.csv"))
    assert [int(row["budget"]) for row in rows if row["set"] == "4"] == [5, 10, 20, 40, 80, 160, 170]
    assert "solver steps: " in capsys.readouterr().out


def test_what_did_not_stop_is_no_part_of_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"set": str(size), "test_solver_steps": steps, "test_solver_converged": share}
        for size, steps, share in ((1, 12.0, 1.0), (2, 14.0, 1.0), (3, 15.0, 0.9))
    ]
    show_line(rows)
    assert capsys.readouterr().out == "solver steps: 10 + 2 x size\n"
    show_line(rows[1:])
    assert not capsys.readouterr().out


@pytest.mark.slow
def test_breadth_beside_depth(best: str) -> None:
    for choose in ("residual", "majority"):
        arguments = ["--budgets", "[3]", "--restarts", "4", "--choose", choose, "--output", f"out/{choose}"]
        main(["scale", "--ckpt_path", best, *arguments, *QUIET])
        rows = table(Path(f"out/{choose}.csv"))
        assert [row["set"] for row in rows] == ["4", "6"]
        assert all(float(row["test_exact_acc"]) <= float(row["pass@4"]) <= 1 for row in rows)


def test_the_majority_is_of_whole_answers() -> None:
    answers = torch.tensor([[[1, 0], [0, 0]], [[1, 1], [0, 1]], [[1, 0], [1, 1]]])  # 3 starts, 2 samples
    assert votes(answers).tolist() == [[2, 1], [1, 1], [2, 1]]


@pytest.mark.slow
def test_any_task_with_an_equilibrium(folder: Path) -> None:
    main(["fit", *TINY, "--trainer.max_steps", "1", "--name", "digits", "--test_after_fit", "false"])
    path = "checkpoints/digits/last.ckpt"
    main(["scale", "--ckpt_path", path, "--budgets", "[1, 4]", "--trainer.limit_test_batches", "1", *QUIET])
    rows = table(folder / "checkpoints/digits/scale.csv")
    assert [row["budget"] for row in rows] == ["1", "4"] and "set" not in rows[0]
    assert float(rows[0]["test_solver_residual"]) > float(rows[1]["test_solver_residual"])


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["--budgets", "[0, 5]"], "error: `--budgets` must be 1 or more, got 0."),
        (["--budgets", "1,x"], "error: `--budgets` must be whole numbers, such as 10,20,40, got 1,x."),
        slow(["--budgets", "[5, 4]"], "error: `--budgets` must be ascending, got [5, 4]."),
        slow(["--budgets", "[]"], "error: `--budgets` must have one entry or more, got []."),
        slow(["--restarts", "0"], "error: `--restarts` must be 1 or more, got 0."),
        slow(["--rtol", "1"], "error: `--rtol` must be in [0, 1), got 1.0."),
        (["--choose", "best"], "error: `--choose`: "),
    ],
)
def test_bad_input_is_one_line(
    folder: Path, typed: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    net = [*BITS, "--ckpt_path", "null"]
    with pytest.raises(SystemExit) as ended:
        main(["scale", *net, *typed, *QUIET])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.startswith(message) and error.count("\n") <= 2
    assert not any(folder.iterdir())


def test_without_an_equilibrium_there_is_nothing_to_scale(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(
            [
                *("scale", "--model", "ImageClassification", "--data", "Digits", "--model.net", "NeuralODE"),
                *("--ckpt_path", "null", *QUIET),
            ]
        )
    assert "`scale` needs an equilibrium, and `NeuralODE` has none." in capsys.readouterr().err
