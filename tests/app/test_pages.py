"""Reports: what a page and its pictures say is what was recorded."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from support.runs import QUIET, TINY

from deq_lightning.app import results
from deq_lightning.app.report import comparison, pictures
from deq_lightning.app.report.command import write_report
from deq_lightning.app.report.look import INK
from deq_lightning.app.report.reading import read_comparison, read_run
from deq_lightning.cli import main

FIT = ["fit", *TINY, *QUIET, "--trainer.limit_train_batches", "3", "--trainer.log_every_n_steps", "1", "--name", "run"]
RUN = Path("checkpoints/run")
EMPTY = {"meta", "link", "path", "use", "br", "img"}  # elements without an end


class Balanced(HTMLParser):
    """Checks that elements end where they must, and keeps the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in EMPTY:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        pass

    def handle_data(self, data: str) -> None:
        self.text += f" {data}"


def text_of(path: Path) -> str:
    page = Balanced()
    page.feed(path.read_text(encoding="utf-8"))
    assert not page.open
    return page.text


@pytest.fixture
def fitted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(results, "write_report", write_report)
    main([*FIT, "--trainer.max_epochs", "2", "--monitor.estimate_every", "2"])
    return RUN


def test_a_fit_leaves_a_page_that_needs_nothing_else(fitted: Path) -> None:
    page = (fitted / "report.html").read_text(encoding="utf-8")
    found = json.loads((fitted / "results.json").read_text())
    text = text_of(fitted / "report.html")
    assert len(page) < 2e6 and INK not in page and "currentColor" in page
    assert not re.findall(r"(?:src|href)=['\"](?!#)", page) and "@import" not in page
    assert f"{found['test']['test_acc']:.4g}" in text and f"Best val_acc: {found['best']:.4g}" in text
    assert f"{found['parameters']:,}" in text and "MDEQ with UPG on Digits" in text
    names = {path.stem for path in (fitted / "pictures").iterdir()}
    assert names == {"learning", "residuals", "steps", "solving", "contraction", "gradient"}
    assert page.count("<svg") == len(names) and all(pictures.PICTURES[name][0] in text for name in names)


def test_the_pictures_show_what_was_recorded(fitted: Path) -> None:
    run = read_run(fitted)
    drawn = {one.name: one.figure for one in pictures.pictures_of(run)}
    losses = drawn["learning"].axes[0].lines
    assert [list(line.get_ydata()) for line in losses] == [run.curve("train_loss")[1], run.curve("val_loss")[1]]
    assert list(drawn["contraction"].axes[0].lines[0].get_ydata()) == run.curve("spectral_radius")[1]
    curves = run.results["residuals"]
    assert [curve["step"] for curve in curves] == [2, 4, 6]
    for line, curve in zip(drawn["residuals"].axes[0].lines, curves, strict=True):
        assert list(line.get_ydata()) == [row[1] for row in curve["residuals"]]
    counted = run.results["solver_steps"]["test"]
    bars = [bar.get_height() for bar in drawn["steps"].axes[1].patches]
    assert sum(bars) == sum(sum(part.values()) for part in counted.values()) == 360  # of 1,797 digits


def test_settings_and_what_they_reach_stand_in_tensorboards_table(fitted: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(fitted))
    read.Reload()
    found = json.loads((fitted / "results.json").read_text())
    (reached,) = read.Scalars("reached/val_acc")
    assert reached.value == found["best"] and "hp_metric" not in read.Tags()["scalars"]
    assert "_hparams_/session_start_info" in read.summary_metadata and "report/steps" in read.Tags()["images"]
    assert not any(name.startswith("reached/") for name in read_run(fitted).curves)


def test_a_run_without_its_files_is_reported_from_its_curves(fitted: Path) -> None:
    whole = read_run(fitted)
    for name in ("results.json", "metrics.csv", "report.html"):
        (fitted / name).unlink()
    main(["report", "--run", str(fitted), "--output", "elsewhere"])
    assert "only its curves are known" in text_of(Path("elsewhere/report.html"))
    run = read_run(fitted)
    assert run.results == {} and run.monitor == "val_acc" and not (fitted / "report.html").exists()
    assert run.curves.keys() == whole.curves.keys()
    for name, (steps, values) in whole.curves.items():
        assert run.curves[name] == (steps, values)


def test_no_report_where_none_is_wanted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "write_report", write_report)
    main([*FIT, "--trainer.max_epochs", "1", "--report", "false"])
    assert (RUN / "results.json").is_file() and not (RUN / "report.html").exists()


def test_what_scale_wrote_is_drawn(fitted: Path) -> None:
    main(["scale", "--ckpt_path", str(fitted / "best.ckpt"), "--budgets", "2,4"])
    write_report(fitted)
    assert (fitted / "pictures/budgets.png").is_file()
    rows = json.loads((fitted / "scale.json").read_text())["rows"]
    figure = {one.name: one.figure for one in pictures.pictures_of(read_run(fitted))}["budgets"]
    line = figure.axes[0].lines[0]
    assert list(line.get_xdata()) == [2, 4] and list(line.get_ydata()) == [row["test_acc"] for row in rows]


@pytest.fixture
def compared(folder: Path) -> Path:
    """Nine settings of three seeds, whose accuracy is 0.5 + k/10 − λ/100 + seed/1000, in 10 k seconds."""
    path, rows, settings = folder / "compared", [], []
    for k in (1, 2, 3):
        for share in ("0.5", "0.8"):
            kind = {"gradient.k": str(k), "gradient.damping": share}
            reached = [0.5 + k / 10 - float(share) / 100 + seed / 1000 for seed in range(3)]
            spread = float(np.std(reached, ddof=1))
            rows.append({**kind, "runs": 3, "test_acc": float(np.mean(reached)), "test_acc_std": spread})
            for seed, value in enumerate(reached):
                name = f"k={k},damping={share},seed={seed}"
                settings.append({"name": name, "kind": kind, "repeat": {"seed_everything": str(seed)}})
                (path / name).mkdir(parents=True)
                found = {"monitor": "val_acc", "mode": "max", "test": {"test_acc": value}, "seconds": 10.0 * k + seed}
                (path / name / "results.json").write_text(json.dumps(found))
                (path / name / "metrics.csv").write_text(f"step,val_acc\n10,0.{k}\n20,0.{k + seed}\n")
    table = {"runs": 18, "of": 18, "settings": settings, "rows": rows}
    (path / "comparison_table.json").write_text(json.dumps(table))
    return path


def test_the_pictures_of_a_comparison(compared: Path) -> None:
    drawn = {one.name: one.figure for one in comparison.pictures_of(*read_comparison(compared))}
    assert list(drawn) == ["cost", "over_gradient.k", "over_gradient.damping", "learning"]
    line = drawn["over_gradient.k"].axes[0].containers[0].lines[0]
    assert list(line.get_xdata()) == [1, 2, 3]
    np.testing.assert_allclose(line.get_ydata(orig=False), [0.5 + k / 10 - 0.005 + 0.001 for k in (1, 2, 3)])
    marks = [container.lines[0].get_xydata()[0] for container in drawn["cost"].axes[0].containers]
    np.testing.assert_allclose(marks[0], [11.0, 0.596])
    first = drawn["learning"].axes[0].lines[0]
    np.testing.assert_allclose(first.get_ydata(), [0.1, 0.2])  # 0.1, 0.2 and 0.3 at the end


def test_the_page_of_a_comparison(compared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["report", "--run", str(compared)])
    text = text_of(compared / "report.html")
    assert (
        "18 of 18 runs" in text
        and "0.596 ± 0.001" in text
        and "report: compared/report.html" in capsys.readouterr().out
    )
    for run in compared.glob("k=1*"):
        (run / "results.json").unlink()  # runs that are under way elsewhere
    assert len(comparison.pictures_of(*read_comparison(compared))[0].figure.axes[0].containers) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--run"),
        (["--run", "nothing"], "must be the folder of a run"),
        (["--run", "."], "holds no run"),
        (["--run", "damaged"], "is damaged"),
        (["--run", ".", "--outputs", "x"], "unrecognized arguments: --outputs"),
    ],
)
def test_what_cannot_be_reported(
    folder: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "damaged").mkdir()
    (folder / "damaged/results.json").write_text("{")
    with pytest.raises(SystemExit) as ended:
        main(["report", *arguments])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and message in said and len(said.splitlines()) == 1
