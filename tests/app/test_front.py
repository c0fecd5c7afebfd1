"""What the program answers before it imports anything."""

import runpy
import subprocess
import sys

import pytest

import deq_lightning
from deq_lightning.cli import main

HEAVY = ("torch", "pytorch_lightning", "jsonargparse")


def answer(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[object, str, str]:
    """Return the exit status, and what went to standard output and standard error."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return ended.value.code, *capsys.readouterr()


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["-h"], ["fitt"], []], ids=" ".join)
def test_nothing_heavy_is_imported_for_an_answer(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from deq_lightning.cli import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit: pass\n"
        f"sys.exit(any(name in sys.modules for name in {HEAVY!r}))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_shell_gets_the_version(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["deq_lightning", "--version"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("deq_lightning", run_name="__main__")  # as `python -m` does
    assert not ended.value.code
    assert capsys.readouterr().out == f"deq_lightning {deq_lightning.__version__}\n"


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_names_the_subcommands_and_where_there_is_more(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = answer([flag], capsys)
    assert not status
    for word in ("fit", "validate", "test", "predict", "cross_validate"):
        assert f"\n  {word} " in out
    for pointer in ("fit --config digits_upg.yaml --print_config", "--gradient.help UPG", "--model.help", "--version"):
        assert pointer in out
    assert max(map(len, out.splitlines())) <= 120


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fitt"], "there is no subcommand `fitt`. Did you mean fit"),
        (["crossvalidate", "--config", "x"], "Did you mean cross_validate"),
        (["digits_upg.yaml"], "there is no subcommand `digits_upg.yaml`. Known: fit, validate, test, predict"),
        ([], "error: a subcommand comes first. Known: fit, validate"),
        (["--config", "digits_upg"], "error: a subcommand comes first. Known: fit, validate"),
    ],
)
def test_a_wrong_subcommand_is_answered_with_the_near_one(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, error = answer(arguments, capsys)
    assert (status, out) == (2, "")
    assert error.startswith("error: ") and message in error
    assert len(error.splitlines()) == 2
