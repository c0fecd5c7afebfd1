"""`python -m deq_lightning predict`: the test samples, or new ones without labels."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl

from deq_lightning.app.found import option
from deq_lightning.app.messages import UsageError
from deq_lightning.app.runs import say
from deq_lightning.data import DataError
from deq_lightning.data.base import Described
from deq_lightning.data.errors import printable
from deq_lightning.data.inputs import NewInputs
from deq_lightning.samples import Samples, samples_of

NAMED = 10  # of the inputs that could not be used


class PredictTrainer(pl.Trainer):
    """Lightning's trainer with inputs for `predict`."""

    def predict(  # type: ignore[override]
        self,
        model: Any = None,
        dataloaders: Any = None,
        datamodule: Any = None,
        return_predictions: bool | None = None,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
        inputs: str | None = None,
    ) -> Any:
        """Write a checkpoint's predictions for the test samples, or for new ones, to a file.

        Args:
            model: the task.
            dataloaders: loaders in place of the data.
            datamodule: the data.
            return_predictions: as for Lightning.
            ckpt_path: the checkpoint.
            weights_only: as for Lightning.
            inputs: what to answer in place of the test samples: a folder of images at any depth, an image, an array
                (.npy or .npz) of inputs as the model takes them, a folder or a file of graphs (.pt), or for a model of
                text a file that it continues, `-` for standard input. Labels are not needed; images and graphs are
                prepared as in the evaluation of the training. What cannot be read is named at the end, with exit
                status 1.
        """
        del inputs  # they are the data module's by now
        if isinstance(datamodule, NewInputs) and datamodule.note:
            say(datamodule.note)
        predictions = super().predict(
            model, dataloaders, datamodule, return_predictions, ckpt_path, weights_only=weights_only
        )
        if isinstance(datamodule, NewInputs) and datamodule.faults:
            name_faults(datamodule.faults)
            raise SystemExit(1)
        return predictions


def name_faults(faults: Sequence[str]) -> None:
    """Say on standard error which inputs could not be used."""
    for fault in faults[:NAMED]:
        print(f"error: {printable(fault)}", file=sys.stderr)
    if len(faults) > NAMED:
        print(f"error: and {len(faults) - NAMED} more, {len(faults)} in all", file=sys.stderr)


def check_inputs(args: Sequence[str]) -> None:
    """Refuse inputs for other subcommands.

    Raises:
        UsageError: if they are typed for one.
    """
    if option(args, "--inputs") is not None and "predict" not in args:
        raise UsageError(f"`--inputs` is for `predict`; `{args[0]}` needs samples with labels. Type `--data` for it.")


def described(data: Any, checkpoint: Mapping[str, Any] | None, needed: bool) -> Samples | None:
    """Give data the state that a checkpoint has of it, and return what it says of its samples.

    Lightning gives it its state as well, but when the sizes are settled.

    Args:
        data: the data module.
        checkpoint: the checkpoint, if there is one.
        needed: whether the data must be there: to print a config, or for new inputs, they need not.

    Raises:
        DataError: if they are not.
        UsageError: if the state is damaged.
    """
    state = (checkpoint or {}).get(type(data).__qualname__)
    try:
        if state:
            data.load_state_dict(state)
        return samples_of(data)
    except DataError:
        if needed:
            raise
        return None
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        if not state:
            raise
        raise UsageError(f"the checkpoint's state of the data is damaged ({error!r:.200}). Use another one.") from error


def new_inputs(data: Any, inputs: str | None) -> Any:
    """Return the data for `predict`: as it is, or what it makes of new inputs.

    Raises:
        DataError: if it can make nothing of them.
    """
    if inputs is None:
        return data
    return data.inputs(inputs) if isinstance(data, Described) else Described.inputs(data, inputs)
