"""Answer help, version and unknown subcommands at once; pass everything else to the command line."""

import gc
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import deq_lightning
from deq_lightning.app.messages import suggest
from deq_lightning.app.postponed import import_lightning

if TYPE_CHECKING:
    from deq_lightning.app.cli import DEQCLI

SUBCOMMANDS = {
    "fit": "Train a model, then test its best checkpoint.",
    "validate": "Evaluate a checkpoint on the validation data.",
    "test": "Evaluate a checkpoint on the test data.",
    "predict": "Write a checkpoint's predictions to a file.",
    "scale": "Test a checkpoint with more and fewer solver steps.",
    "report": "Write what a run or a comparison has come to as a page with pictures.",
    "export": "Write a checkpoint as a program for torch.export or ONNX.",
    "compare": "Fit and test every combination of some settings.",
    "search": "Let Optuna choose settings, run by run.",
    "cross_validate": "Fit and test a fresh model for every fold of the data.",
}

HELP = """\
usage: deq_lightning SUBCOMMAND [options]

Train and evaluate implicit (deep equilibrium) models.

subcommands:
{subcommands}

a first run, on real handwritten digits that need no download:
  fit --config digits_upg.yaml

its options; those after the config win:
  --gradient NPG --gradient.k 3        how the equilibrium is differentiated
  --model.net.solver Anderson          how it is found
  --trainer.max_epochs 5               any argument of Lightning's Trainer
  --ckpt_path PATH                     the checkpoint to continue, test or predict with; its config comes with it

what there is to set:
  fit --config digits_upg.yaml --print_config   every setting of a run, without running it
  fit --help                                    every option
  fit --gradient.help UPG                       the arguments of a class, likewise
  fit --model.help ImageClassification          --model.net.help MDEQ, --data.help Digits

  --version                                     the version"""


def main(args: Sequence[str] | None = None, run: bool = True) -> "DEQCLI":
    """Run the command line; the shell, the console script, notebooks and tests all come here.

    Args:
        args: what is typed after the program's name. None: the program's own arguments.
        run: False parses and builds trainer, task and data without running; `args` then have no subcommand.

    Returns:
        The command line object, with `trainer`, `model` and `datamodule`.

    Raises:
        SystemExit: with a line or two on standard error, and status 2 for anything typed that cannot be done, 1 for a
            run that has diverged or can no longer be integrated; with status 0 after help and the like. After Ctrl-C
            with 130, after SIGTERM with 143, and the command that continues the run.
    """
    own_process, args = args is None, list(sys.argv[1:] if args is None else args)
    if own_process and os.getcwd() not in sys.path:  # classes in the current folder, as with `python -m`
        sys.path.insert(0, os.getcwd())
    if run:
        _answer(args)
    try:
        with _all_to_stay() if own_process else nullcontext():
            import_lightning()
            from deq_lightning.app.command import command
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    return command(args, run)


def script() -> None:
    """Run the command line as the console script, whose exit status would be what `main` returns."""
    main()


@contextmanager
def _all_to_stay() -> Iterator[None]:
    """Keep the garbage collector off the imported modules: scanning them takes a tenth of the start."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _answer(args: Sequence[str]) -> None:
    """Answer what needs no PyTorch, and exit; return if a subcommand is typed."""
    first = args[0] if args else ""
    if first in ("-h", "--help"):
        width = max(map(len, SUBCOMMANDS))
        print(HELP.format(subcommands="\n".join(f"  {name:{width}}  {what}" for name, what in SUBCOMMANDS.items())))
        raise SystemExit(0)
    if first == "--version":
        print(f"deq_lightning {deq_lightning.__version__}")
        raise SystemExit(0)
    option = first.startswith("-")
    if first in SUBCOMMANDS or (
        option and not SUBCOMMANDS.keys().isdisjoint(args)
    ):  # Lightning takes it after a config
        return
    wrong = f"there is no subcommand `{first}`" if first and not option else "a subcommand comes first"
    print(f"error: {wrong}. {suggest(first, list(SUBCOMMANDS))}", file=sys.stderr)
    print("`python -m deq_lightning --help` says what they do.", file=sys.stderr)
    raise SystemExit(2)
