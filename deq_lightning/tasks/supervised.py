"""What the tasks with labels share: the loss, the figures of whole splits, the table of predictions."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from deq_lightning.estimators.modes import evaluating
from deq_lightning.models import Equilibrium
from deq_lightning.tasks.base import ImplicitTask
from deq_lightning.tasks.new_inputs import TrainedOn, answer_files
from deq_lightning.tasks.reports import found_column, solver_columns

CLASSES = "class_names"  # in a checkpoint


class SupervisedTask(ImplicitTask):
    """Trains, evaluates and predicts with labels; a subclass says what answers which labels, and how it is judged.

    Subclasses write `answer` and `criterion`, call `measure` once, and may decide and tabulate in their own way. Where
    labels are missing in `predict`, whose batch is then a tensor of inputs alone, they are None in both.

    Args:
        net: the model.
        options: those of `ImplicitTask`, from `optimizer` on.
    """

    val_metrics: MetricCollection
    test_metrics: MetricCollection
    class_names: Sequence[str] | None = None  # of the data of the training, where it has names; from the checkpoint
    trained_on: TrainedOn | None = None  # of a task that was loaded
    every_probability = False  # whether tables have `probabilities`, (labels, classes), where there are such

    def measure(self, **metrics: Metric | MetricCollection) -> None:
        """Choose the figures of whole splits, by the names they are logged under after `val_` and `test_`.

        The first one selects the best checkpoint.
        """
        self.val_metrics = MetricCollection(metrics, prefix="val_")
        self.test_metrics = self.val_metrics.clone(prefix="test_")
        self.monitor = f"val_{next(iter(metrics))}"
        self.mode = self.mode_of(self.monitor)

    def mode_of(self, figure: str) -> str:
        """Return what the metric says of itself; "min" for the loss."""
        metrics = dict(self.val_metrics.items())
        return "max" if figure in metrics and metrics[figure].higher_is_better else "min"

    @abstractmethod
    def answer(self, batch: Any, split: str) -> tuple[Tensor, Tensor, list[Equilibrium]]:
        """Return the logits and labels of a batch that count in a split, and the equilibria behind them."""

    @abstractmethod
    def criterion(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return the loss."""

    def decide(self, logits: Tensor) -> Tensor:
        """Return the predictions, as the metrics take them: the class of the largest logit."""
        return logits.argmax(dim=1)

    def columns(self, logits: Tensor, y: Tensor | None) -> dict[str, Any]:
        """Return one value per label for each column of the table: the prediction, its probability and the label."""
        probabilities = logits.softmax(dim=1)
        probability, prediction = probabilities.max(dim=1)
        table = {"prediction": prediction, "probability": probability} | ({} if y is None else {"label": y})
        return table | ({"probabilities": probabilities} if self.every_probability else {})

    def sample_of(self, batch: Any) -> Tensor | slice:
        """Return the solver's sample behind each row of that table."""
        del batch
        return slice(None)

    def measured(self, batch: Any, equilibria: Sequence[Equilibrium]) -> dict[str, Tensor]:
        """Return further figures of each sample by name, whose means are logged, and which the table has as columns."""
        del batch, equilibria
        return {}

    def has_labels(self, batch: Any) -> bool:
        """Say whether a batch of `predict` has labels; one that is a tensor has none."""
        return not isinstance(batch, Tensor)

    def loss(self, batch: Any) -> tuple[Tensor, list[Equilibrium]]:
        """Return the loss of a training batch."""
        logits, y, equilibria = self.answer(batch, "train")
        return self.criterion(logits, y), equilibria

    def setup(self, stage: str) -> None:
        """Prepare, and where the data has several test sets, figures for each, logged as `test_acc/NAME`."""
        super().setup(stage)
        tests = [self.test_metrics.clone(postfix=f"/{name}") for name in self.test_names]
        self._tests = nn.ModuleList(tests).to(self.device)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log the loss and the figures of the validation split."""
        del batch_idx
        self._evaluate(batch, "val", self.val_metrics)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log the loss and the figures of the test split, or of one of several."""
        del batch_idx
        metrics = cast(MetricCollection, self._tests[dataloader_idx]) if self.test_names else self.test_metrics
        self._evaluate(batch, "test", metrics, self.postfix(dataloader_idx))

    def _evaluate(self, batch: Any, split: str, metrics: MetricCollection, postfix: str = "") -> None:
        logits, y, equilibria = self.answer(batch, split)
        metrics.update(self.decide(logits), y)
        options: dict[str, Any] = {"batch_size": len(y), "add_dataloader_idx": False}
        self.log(f"{split}_loss{postfix}", self.criterion(logits, y), sync_dist=True, **options)
        self.log_dict(metrics, prog_bar=True, **options)
        self.log_equilibria(equilibria, len(y), prefix=f"{split}_", postfix=postfix)
        for name, values in self.measured(batch, equilibria).items():
            self.log(f"{split}_{name}{postfix}", values.mean(), sync_dist=True, **options)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Return one value per row of the test split for each column, the solver's figures among them.

        Of a batch without labels the table says of each row whether its equilibrium was found.
        """
        del batch_idx, dataloader_idx
        labelled = self.has_labels(batch)
        batch = (batch, None) if isinstance(batch, Tensor) else batch
        logits, y, equilibria = self.answer(batch, "test")
        rows = self.sample_of(batch)
        of_samples = solver_columns(equilibria) | ({} if labelled else found_column(equilibria))
        of_samples |= self.measured(batch, equilibria)
        return self.columns(logits, y) | {name: values[rows] for name, values in of_samples.items()}

    @torch.no_grad()
    def predict(self, x: Any) -> dict[str, Any]:
        """Return the table of predictions of a batch by column, in evaluation mode and without a trainer.

        Args:
            x: (batch, ...) inputs as the network takes them, such as a data module's `prepare` makes them; or, of a
                task that `deq_lightning.load` has made, a path as `predict --inputs` takes it, of what is prepared as
                in the evaluation of the training.

        Returns:
            Tensors, (batch,): the prediction, its probability, steps and residual of the solver, `converged`; and
            `class`, the names of the predicted classes, where the checkpoint has such. Of a path also `file`, the name
            of each; what cannot be read is left out, with a warning.

        Raises:
            ValueError: of a path, if the checkpoint does not say how the data of the training is made.
            DataError: of a path, if there is nothing that can be used.
        """
        if isinstance(x, str | Path):
            return answer_files(self, x)
        with evaluating(self):
            table = self.predict_step(x.to(self.device), 0)
        names = self.class_names
        if names is None or "prediction" not in table:
            return table
        return table | {"class": [names[number] for number in table["prediction"].tolist()]}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the names of the classes as well, where the data has such."""
        super().on_save_checkpoint(checkpoint)
        names = getattr(getattr(self._trainer, "datamodule", None), "class_names", None) or self.class_names
        if names is not None:
            checkpoint[CLASSES] = list(map(str, names))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Know them again."""
        super().on_load_checkpoint(checkpoint)
        self.class_names = checkpoint.get(CLASSES)
