"""Comparisons: every combination once, by whatever processes, and a table whose figures are those of the runs."""

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import ttest_rel
from support.marks import slow
from support.runs import TINY

from deq_lightning.app.compare import claims
from deq_lightning.app.compare.axes import settings_of
from deq_lightning.app.compare.claims import claimed
from deq_lightning.app.compare.command import compare
from deq_lightning.app.compare.table import report
from deq_lightning.app.messages import UsageError
from deq_lightning.cli import main

FOLDER = Path("checkpoints/digits_upg_compared")
OVER = ["--over", "gradient=UPG,JFB", "--over", "seed_everything=0..2"]


def pairs(*texts: str) -> list[dict[str, str]]:
    return [dict(setting.pairs) for setting in settings_of(texts)]


def test_the_settings_are_all_combinations() -> None:
    found = pairs("a=1,2", "b.c=x")
    assert found == [{"a": "1", "b.c": "x"}, {"a": "2", "b.c": "x"}]
    assert pairs("a=1,2;b=3,4") == [{"a": "1", "b": "3"}, {"a": "2", "b": "4"}]
    assert pairs("a=[1,2],[3]") == [{"a": "[1,2]"}, {"a": "[3]"}]
    assert pairs("--a=-1..1") == [{"a": "-1"}, {"a": "0"}, {"a": "1"}]
    assert len(pairs("a=1..3", "b=1..4", "c=0")) == 12


def test_names_and_repeats() -> None:
    first, second = settings_of(["model.k=1", "gradient.k=[1, 2]", "seed_everything=3..4"])
    assert first.name == "model.k=1,gradient.k=_1,_2_,seed_everything=3" != second.name
    assert first.kind == second.kind and first.repeat == (("seed_everything", "3"),)
    assert first.flags == ["--model.k", "1", "--gradient.k", "[1, 2]", "--seed_everything", "3"]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["gradient"], "must be a flag with its values"),
        (["=1,2"], "must be a flag with its values"),
        ([""], "must be a flag with its values, .* got nothing"),
        (["a="], "`--over a` must have values, .* got none"),
        (["a=4..0"], r"`--over a` must have values, .* got 4\.\.0"),
        (["a=1,,2"], "`--over a` must have different values"),
        (["a=1,1"], "`--over a` must have different values"),
        (["a=1,2;b=3"], "must have as many values, got 2 of `a` and 1 of `b`"),
        (["a=1", "a=2"], "must vary each flag once, got `a` twice"),
        (["a=" + "x" * 200], "120 characters or fewer"),
    ],
)
def test_what_is_no_axis(texts: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        settings_of(texts)


class Fits:
    """The command line, with fits that take no time: what they reach follows from gradient and seed."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.done: list[str] = []
        self.stop_at = stop_at

    def __call__(self, args: list[str], run: bool = True) -> Any:
        if args[0] != "fit":
            return main(args, run=run)
        typed = dict(zip(args[1::2], args[2::2], strict=False))
        typed |= {key: args[args.index(key) + 1] for key in ("--gradient", "--seed_everything", "--name")}
        if len(self.done) == self.stop_at:
            raise SystemExit(130)
        if typed["--gradient"] == "NPG":
            print("error: it diverged", file=sys.stderr)
            raise SystemExit(1)
        self.done.append(Path(typed["--name"]).name)
        run_folder = Path("checkpoints", typed["--name"])
        run_folder.mkdir(parents=True)
        seed = int(typed["--seed_everything"])
        acc = (
            {"UPG": 0.9, "JFB": 0.8}[typed["--gradient"]] + 0.01 * seed + 0.001 * seed * (typed["--gradient"] == "UPG")
        )
        found = {"monitor": "val_acc", "mode": "max", "test": {"test_acc": acc}, "seconds_per_step": 1.0}
        (run_folder / "results.json").write_text(json.dumps(found))
        return None


def table() -> list[dict[str, str]]:
    return list(csv.DictReader((FOLDER / "comparison_table.csv").open()))


def test_every_run_once_whatever_stops_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args, fits = [*TINY, *OVER], Fits(stop_at=2)
    with pytest.raises(SystemExit):
        compare(args, fits)
    rest = Fits()
    compare(args, rest)
    assert len(fits.done) == 2 and len(rest.done) == 4 and not set(fits.done) & set(rest.done)
    again = Fits()
    compare(args, again)
    assert again.done == []
    upg, jfb = table()
    assert (upg["gradient"], upg["runs"], jfb["gradient"], jfb["runs"]) == ("UPG", "3", "JFB", "3")
    assert float(upg["test_acc"]) == pytest.approx(0.911) and float(upg["test_acc_std"]) == pytest.approx(0.011)
    said = capsys.readouterr().out
    assert "runs 6, of 6" in said and "bold: the best test_acc, by a paired t-test over seed_everything" in said
    assert not list((FOLDER / "claims").iterdir())
    with pytest.raises(
        UsageError, match=r"holds runs of other settings: there `trainer\.max_epochs` is .* `--name NAME`"
    ):
        compare([*args, "--trainer.max_epochs", "7"], again)


def test_a_failed_run_is_a_row(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    over = ["--over", "gradient=NPG,UPG", "--over", "seed_everything=0,1"]
    for _ in range(2):
        compare([*TINY, *over], Fits())
    npg, upg = table()
    assert npg["failed"] == "2: it diverged" and npg["runs"] == "0" and upg["runs"] == "2"
    captured = capsys.readouterr()
    assert (
        captured.err.count("error: it diverged") == 2
        and "delete `checkpoints/digits_upg_compared/failed`" in captured.out
    )


def test_shards_are_the_runs_of_all_together(folder: Path) -> None:
    done = []
    for shard in ("1/4", "2/4", "3/4", "4/4"):
        fits = Fits()
        compare([*TINY, *OVER, "--shard", shard], fits)
        done.append(fits.done)
    assert [len(one) for one in done] == [2, 2, 1, 1] and len({name for one in done for name in one}) == 6


def test_a_difference_within_the_noise_is_not_the_best(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = {"UPG": [0.9, 0.8, 0.95], "JFB": [0.89, 0.82, 0.93]}
    assert ttest_rel(*values.values()).pvalue > 0.05
    for gradient, figures in values.items():
        for seed, acc in enumerate(figures):
            run = folder / f"gradient={gradient},seed_everything={seed}"
            run.mkdir()
            (run / "results.json").write_text(
                json.dumps({"monitor": "val_acc", "mode": "max", "test": {"test_acc": acc}})
            )
    report(folder, settings_of(["gradient=UPG,JFB", "seed_everything=0..2"]))
    assert "bold" not in capsys.readouterr().out


def test_of_many_processes_one_does_a_run(tmp_path: Path) -> None:
    with claimed(tmp_path, "a") as ours:
        assert ours
        claim = json.loads((tmp_path / "a").read_text())
        (tmp_path / "b").write_text(json.dumps(claim | {"process": os.getppid()}))  # lives
        with claimed(tmp_path, "b") as other:
            assert not other
        (tmp_path / "c").write_text(json.dumps(claim | {"process": 2**22 + 1}))  # is gone
        with claimed(tmp_path, "c") as taken:
            assert taken
        (tmp_path / "d").write_text(json.dumps({"host": "elsewhere", "process": 1}))
        with claimed(tmp_path, "d") as other:
            assert not other
        silent = time.time() - claims.DEAD - 1
        os.utime(tmp_path / "d", (silent, silent))
        with claimed(tmp_path, "d") as taken:
            assert taken
        (tmp_path / "e").write_text("half a cl")
        with claimed(tmp_path, "e") as taken:
            assert taken
    assert [one.name for one in tmp_path.iterdir()] == ["b"]


def test_a_claim_has_a_heartbeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "HEARTBEAT", 0.01)
    with claimed(tmp_path, "a"):
        os.utime(tmp_path / "a", (0, 0))
        for _ in range(200):
            if (tmp_path / "a").stat().st_mtime > 0:
                break
            threading.Event().wait(0.01)
        assert (tmp_path / "a").stat().st_mtime > 0


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ([*OVER, "--jobs", "many"], "error: argument --jobs: invalid int value: 'many'. Type `compare --help`"),
        (["--over", "gradient.kk=1,2"], "there is no argument `kk`"),
        slow([*OVER, "--jobs", "0"], "`--jobs` must be 1 or more, got 0."),
        slow([*OVER, "--shard", "3/2"], "`--shard` must be a part of so many, such as 2/3, got 3/2."),
        slow(["--over", "nonsense=1,2"], "there is no `--nonsense`"),
    ],
)
def test_bad_input_is_a_line(folder: Path, typed: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["compare", *TINY, *typed])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and message in error and "Traceback" not in error
    assert not FOLDER.exists()


@pytest.mark.slow
def test_killed_twice_and_by_two_processes_the_table_is_the_same(folder: Path) -> None:
    limits = ["--trainer.max_epochs", "2", "--trainer.limit_train_batches", "4"]
    command = [sys.executable, "-m", "deq_lightning", "compare", *TINY, *limits, *OVER]
    whole = subprocess.run([*command, "--name", "whole"], capture_output=True, text=True, check=True)
    for seconds in (14, 20):
        process = subprocess.Popen([*command, "--name", "parts"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
    both = [subprocess.Popen([*command, "--name", "parts"], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outs = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    began = [line for out in outs for line in out.splitlines() if line.startswith("setting: ")]
    assert len(began) == len(set(began)) and whole.stdout.count("setting: ") == 6
    subprocess.run([*command, "--name", "parts"], check=True, capture_output=True)
    one, other = (
        json.loads(Path(f"checkpoints/{name}/comparison_table.json").read_text()) for name in ("whole", "parts")
    )
    for row, same in zip(one["rows"], other["rows"], strict=True):
        assert {key: row[key] for key in row if key.startswith("test_")} == {
            key: same[key] for key in same if key.startswith("test_")
        }
