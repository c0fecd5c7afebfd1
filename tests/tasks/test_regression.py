"""Regression in the units of the data, and classification of rows."""

import csv
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score
from support.runs import QUIET, assert_equal, trainer
from torch.utils.data import DataLoader, TensorDataset

import deq_lightning
from deq_lightning import FPN, Classification, Digits, EquilibriumMLP, ImageClassification, Network, Regression, Table
from deq_lightning.app.fitting import try_out
from deq_lightning.app.messages import UsageError
from deq_lightning.cli import main
from deq_lightning.configured import CombinationError
from deq_lightning.samples import ROW_NUMBERS, Samples

FLAGS = [
    *("--data", "Table", "--model", "Regression", "--model.net", "EquilibriumMLP", "--model.net.width", "8"),
    *QUIET,
]
FEATURES, TARGETS = 4, ["height", "mass"]


def write(folder: Path, rows: int = 60) -> Path:
    random = np.random.RandomState(0)
    x = random.randn(rows, FEATURES)
    y = np.stack([1e6 + 20 * x.sum(axis=1), 0.01 * (x[:, 0] * x[:, 1])], axis=1)
    with (folder / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["a", "b", "c", "d", *TARGETS], *np.concatenate([x, y], axis=1).tolist()])
    return folder / "rows.csv"


def task(targets: int = 2, features: int = FEATURES) -> Regression:
    torch.manual_seed(0)
    return Regression(EquilibriumMLP(features, targets, width=8), targets=targets)


def fitted(folder: Path, targets: list[str] = TARGETS, **options) -> tuple[Regression, Table, pl.Trainer]:
    data = Table(str(write(folder)), target=targets, columns=["a", "b", "c", "d"], batch_size=16)
    run, model = trainer(folder, **{"max_steps": 6, **options}), task(len(targets))
    run.fit(model, data)
    return model, data, run


def test_the_loss_is_of_standardised_targets_and_predictions_are_in_units(folder: Path) -> None:
    model, data, _ = fitted(folder)
    x, y = data.train_set.tensors
    mean, std = y.double().mean(dim=0), y.double().std(dim=0, correction=0)
    torch.testing.assert_close(model.target_mean.double(), mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(model.target_std.double(), std, rtol=1e-4, atol=0)
    model.eval()
    with torch.no_grad():
        outputs = model.net(x)[0]
        loss = model.loss((x, y))[0]
        assert torch.equal(model(x), outputs * model.target_std + model.target_mean)
    expected = (outputs.double() - (y.double() - mean) / std).square().mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_figures_are_those_of_scikit_learn_in_units(folder: Path) -> None:
    model, data, run = fitted(folder)
    (figures,) = run.test(model, data, verbose=False)
    x, y = data.test_set.tensors
    with torch.no_grad():
        predicted = model.eval()(x).double().numpy()
    y = y.double().numpy()
    assert figures["test_r2"] == pytest.approx(r2_score(y, predicted), rel=1e-4)
    assert figures["test_mse"] == pytest.approx(mean_squared_error(y, predicted), rel=1e-5)
    assert figures["test_mae"] == pytest.approx(mean_absolute_error(y, predicted), rel=1e-5)
    assert (model.monitor, model.mode) == ("val_r2", "max")
    assert (model.mode_of("val_mae"), model.mode_of("val_loss")) == ("min", "min")


def test_a_checkpoint_predicts_in_units_and_a_resumed_run_is_the_uninterrupted_one(folder: Path) -> None:
    whole, data, run = fitted(folder, max_steps=-1, max_epochs=2)
    run.save_checkpoint("whole.ckpt")
    part = fitted(folder, max_steps=-1, max_epochs=1)[2]
    part.save_checkpoint("part.ckpt")
    resumed = task()
    rest = trainer(folder, max_steps=-1, max_epochs=2)
    rest.fit(resumed, Table("rows.csv", TARGETS, ["a", "b", "c", "d"], batch_size=16), ckpt_path="part.ckpt")
    assert rest.global_step == run.global_step == 6
    assert_equal(resumed.state_dict(), whole.state_dict())
    x = data.test_set.tensors[0]
    net = EquilibriumMLP(FEATURES, 2, width=8)
    for loaded in (deq_lightning.load("whole.ckpt"), Regression.load_from_checkpoint("whole.ckpt", net=net).eval()):
        with torch.no_grad():
            assert torch.equal(loaded(x), whole.eval()(x))
        assert loaded(x)[:, 0].mean() > 9e5


@pytest.mark.parametrize(
    ("targets", "columns"),
    [
        (["mass"], ["prediction", "target"]),
        (TARGETS, ["prediction_height", "prediction_mass", "target_height", "target_mass"]),
    ],
)
def test_the_columns_of_predictions(targets: list[str], columns: list[str], folder: Path) -> None:
    model, data, run = fitted(folder, targets, max_steps=1)
    (table,) = run.predict(model, data)
    assert [name for name in table if not name.startswith("solver_")] == columns
    torch.testing.assert_close(table[columns[-1]].float(), data.test_set.tensors[1][:, -1])
    with torch.no_grad():
        torch.testing.assert_close(table[columns[0]].float(), model.eval()(data.test_set.tensors[0])[:, 0])


def test_without_a_data_module_targets_are_numbered_and_not_standardised(folder: Path) -> None:
    loader = DataLoader(TensorDataset(torch.randn(8, FEATURES), torch.randn(8, 2)), batch_size=8)
    model, run = task(), trainer(folder, max_steps=1)
    run.fit(model, loader, loader)
    assert model.target_mean.tolist() == [0, 0] and model.target_std.tolist() == [1, 1]
    (table,) = run.predict(model, loader)
    assert list(table)[:4] == ["prediction_1", "prediction_2", "target_1", "target_2"]


def test_r2_of_a_single_sample_is_nan(folder: Path) -> None:
    loader = DataLoader(TensorDataset(torch.randn(1, FEATURES), torch.randn(1)))
    (figures,) = trainer(folder).test(task(1), loader, verbose=False)
    assert np.isnan(figures["test_r2"]) and figures["test_mae"] > 0


class Flat(Network):
    """Answers a number without an axis of targets."""

    def __init__(self) -> None:
        super().__init__()
        self.out = torch.nn.Linear(FEATURES, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list]:
        return self.out(x)[:, 0], []


@pytest.mark.parametrize("model", [Regression(Flat()), task(2)], ids=["no axis", "too many"])
def test_other_answers_are_refused(model: Regression) -> None:
    with pytest.raises(CombinationError, match="must predict the 1 numbers of a sample, and `targets` be as many; got"):
        model.loss((torch.randn(3, FEATURES), torch.randn(3)))


def test_outputs_are_exactly_the_targets() -> None:
    samples = Samples(ROW_NUMBERS, features=4, targets=2)
    (line,) = samples.misfits({"num_classes": 3, "in_features": 4}, "Table")
    assert line == "`num_classes` of the network must be 2 for `Table`, got 3"


def test_the_task_must_have_the_targets_of_the_data(folder: Path) -> None:
    model = Regression(EquilibriumMLP(FEATURES, 2, width=8))
    with pytest.raises(CombinationError, match=r"`targets` of the network must be 2 for `Table`, got 1."):
        trainer(folder).fit(model, Table(str(write(folder)), TARGETS))


def test_classification_takes_rows_and_images_and_image_classification_images(folder: Path) -> None:
    rows = "".join(f"{row % 7},{'even' if row % 2 == 0 else 'odd'}\n" for row in range(60))
    (folder / "classes.csv").write_text("x,y\n" + rows)
    for data, features in ((Table("classes.csv", "y"), 1), (Digits(), 64)):
        run = trainer(folder, max_steps=-1, max_epochs=1, limit_train_batches=1)
        run.fit(Classification(EquilibriumMLP(features, 10, width=8)), data)
        assert "val_acc" in run.logged_metrics
    with pytest.raises(
        CombinationError, match="`ImageClassification` takes images with a class each, and `Table` has r"
    ):
        trainer(folder).fit(ImageClassification(EquilibriumMLP(1, 2)), Table("classes.csv", "y"))


def test_flags_alone_train_and_predict(folder: Path) -> None:
    write(folder)
    data = ["--data.path", "rows.csv", "--data.target", "[height,mass]"]
    cli = main(["fit", *FLAGS, *data, "--trainer.max_epochs", "1"])
    assert (cli.model.targets, cli.model.net.num_classes, cli.model.net.in_features) == (2, 2, FEATURES)
    (best,) = folder.rglob("best.ckpt")
    saved = torch.load(best, weights_only=True)["Table"]
    assert saved == cli.datamodule.state_dict()
    main(["predict", "--ckpt_path", str(best)])
    rows = list(csv.DictReader(best.with_name("predictions.csv").open()))
    assert len(rows) == 12 and all(float(row["prediction_height"]) > 9e5 for row in rows)


@pytest.mark.slow
def test_a_later_table_is_tested_with_the_categories_of_the_checkpoint(folder: Path) -> None:
    rows = [f"{row},{'abc'[row % 3]},{row % 7 + 0.5}\n" for row in range(60)]
    for name, known in (("all.csv", "abc"), ("later.csv", "ab")):
        (folder / name).write_text("x,site,y\n" + "".join(row for row in rows if row.split(",")[1] in known))
    cli = main(["fit", *FLAGS, "--data.path", "all.csv", "--data.target", "y", "--trainer.max_epochs", "1"])
    (best,) = folder.rglob("best.ckpt")
    later = main(["test", "--ckpt_path", str(best), "--data.path", "later.csv"])
    assert later.datamodule.state_dict() == cli.datamodule.state_dict()
    assert later.datamodule.test_set.tensors[0].shape == (8, 4)


def test_a_network_for_images_is_refused_in_a_line() -> None:
    samples = Samples(ROW_NUMBERS, features=4, targets=1)
    with pytest.raises(
        UsageError, match=r"`FPN` cannot take rows of \(4,\) of `Table`: .* Type another `--model.net`."
    ):
        try_out(Regression(FPN(num_classes=1)), samples, "Table")
    with pytest.raises(
        UsageError, match=r"`Flat` must answer a row of `Table` with 1 logits or more, got .*shape \(2,\)."
    ):
        try_out(Regression(Flat()), samples, "Table")


def test_numbers_are_predicted_without_targets(folder: Path) -> None:
    torch.manual_seed(0)
    task = Regression(EquilibriumMLP(3, 2, width=4), targets=2)
    task.target_mean.copy_(torch.tensor([5.0, -1.0]))
    x = torch.randn(4, 3)
    columns = task.predict(x)
    assert not any("target" in name for name in columns)
    found = torch.stack([columns["prediction_1"], columns["prediction_2"]], 1)
    torch.testing.assert_close(found.float(), task(x).detach())
