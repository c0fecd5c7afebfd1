"""`python -m deq_lightning export`: a checkpoint as a program that runs without this package."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from deq_lightning.app.messages import UsageError
from deq_lightning.configured import CombinationError, one_of, whole
from deq_lightning.estimators.modes import evaluating, solving
from deq_lightning.files import replacing
from deq_lightning.tasks import ImplicitTask

Target = Literal["torch", "onnx"]
ENDINGS = {"torch": "pt2", "onnx": "onnx"}
EXAMPLES = 3  # in the batch that is traced; it is checked with fewer, so that the size of a batch is seen to be free
Run = Callable[[Tensor], Tensor]


class Prediction(nn.Module):
    """What is exported of a task: its prediction alone.

    Args:
        task: the task.
    """

    def __init__(self, task: ImplicitTask) -> None:
        super().__init__()
        self.task = task

    def forward(self, x: Tensor) -> Tensor:
        """Return the prediction."""
        return self.task(x)


class ExportTrainer(pl.Trainer):
    """Lightning's trainer with what `export` does."""

    def export(
        self,
        model: ImplicitTask,
        datamodule: pl.LightningDataModule,
        to: Target = "torch",
        output: str | None = None,
        steps: int | None = None,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Write the prediction of a checkpoint as a program for batches of any size, and check it on test samples.

        A program has no loop that ends by itself: the solver's whole budget of evaluation is written out, and a sample
        that has converged stays as it is. What is exported takes inputs as the data module hands them over.

        Args:
            model: the task.
            datamodule: the data, of whose test samples a few are taken as examples.
            to: `torch`, a program of `torch.export`, or `onnx`, which needs `pip install deq_lightning[onnx]`.
            output: the file. None: `model.pt2` or `model.onnx` beside the checkpoint.
            steps: evaluations of the cell, 1 or more. None: the solver's budget of evaluation.
            ckpt_path: the checkpoint.
            weights_only: as for Lightning.

        Raises:
            UsageError: if an argument is out of its range, or packages are missing.
            CombinationError: if the inputs are not tensors, or the model cannot be a program.
        """
        _check(to, steps)
        path = Path(output) if output is not None else Path(ckpt_path or ".").with_name(f"model.{ENDINGS[to]}")
        self.limit_test_batches = 1
        changed = {} if steps is None else {"max_steps": steps, "eval_max_steps": None}
        with solving(model, **changed):
            # The weights are then there, and the strategy that the prediction passes through.
            self.test(model, datamodule=datamodule, ckpt_path=ckpt_path, verbose=False, weights_only=weights_only)
            x = _examples(datamodule)
            with evaluating(model), torch.no_grad():
                module = Prediction(model.to("cpu"))
                run = WRITERS[to](module, x, path)
                difference = max(_difference(run, module, x[:count]) for count in (len(x), 1))
        solver = next((one.solver.for_evaluation() for one in model.implicit_models()), None)
        budget = "" if solver is None else f", {steps or solver.max_steps} solver steps"
        print(f"{path}: input {_shape(x)}{budget}; differs from the checkpoint by at most {difference:.2g}")


def _check(to: str, steps: int | None) -> None:
    try:
        one_of(get_args(Target), to=to)
        whole(1, steps=1 if steps is None else steps)
    except ValueError as error:
        raise UsageError(str(error).replace("`", "`--", 1)) from error
    if to == "onnx":
        missing = [name for name in ("onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None]
        if missing:
            raise UsageError(f"`--to onnx` needs {' and '.join(missing)}. Type `pip install deq_lightning[onnx]`.")


def _examples(data: pl.LightningDataModule) -> Tensor:
    loaders: Any = data.test_dataloader()
    batch = next(iter(loaders[0] if isinstance(loaders, list) else loaders))
    x = batch[0] if isinstance(batch, tuple | list) else batch
    if not isinstance(x, Tensor) or not isinstance(batch, tuple | list) or len(batch) != 2:
        raise CombinationError(
            "`export` takes models of images, tables and puzzles, whose inputs are tensors, and "
            f"`{type(data).__name__}` has batches of `{type(batch).__name__}`."
        )
    return x[:EXAMPLES]


def _exported(module: nn.Module, x: Tensor) -> Any:
    try:
        return torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    except CombinationError:
        raise
    except Exception as error:  # of many kinds, with pages of explanation
        raise CombinationError(
            f"`{type(module.task.net).__name__}` cannot be a program of `torch.export` ({_brief(error)})."  # type: ignore[union-attr]
        ) from error


def _to_torch(module: nn.Module, x: Tensor, path: Path) -> Run:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, "wb") as file:
        torch.export.save(_exported(module, x), file)
    return torch.export.load(path).module()


def _to_onnx(module: nn.Module, x: Tensor, path: Path) -> Run:
    import onnxruntime

    program = _exported(module, x)
    try:
        made: Any = torch.onnx.export(program, (x,), input_names=["input"], output_names=["prediction"], verbose=False)
    except Exception as error:
        solver = next((type(one.solver).__name__ for one in module.task.implicit_models()), "")  # type: ignore[union-attr,operator]
        raise CombinationError(
            f"`{type(module.task.net).__name__}` with `{solver}` has operations that ONNX lacks ({_brief(error)}). "  # type: ignore[union-attr]
            "Use `--to torch`, or `--model.net.solver FixedPointIteration`."
        ) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, "wb") as file:
        file.write(made.model_proto.SerializeToString())
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda x: torch.as_tensor(session.run(None, {"input": x.numpy()})[0])


WRITERS: dict[str, Callable[[nn.Module, Tensor, Path], Run]] = {"torch": _to_torch, "onnx": _to_onnx}


def _difference(run: Run, module: nn.Module, x: Tensor) -> float:
    return float((run(x) - module(x)).abs().max())


def _shape(x: Tensor) -> str:
    return f"(batch, {', '.join(map(str, x.shape[1:]))})"


def _brief(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:120]
