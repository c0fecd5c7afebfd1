"""Old names of arguments, in flags and in configs."""

from pathlib import Path

import pytest
import yaml

from deq_lightning.cli import main
from deq_lightning.configured import old_names, renamed
from deq_lightning.data import Digits

FIT = ["--config", "digits_upg"]


@renamed(val_fraction="val_size")
class Mine(Digits):
    """Uses one of the old names for something else."""

    def __init__(self, test_fraction: str = "mine", **options: float) -> None:
        super().__init__(**options)
        self.test_fraction = test_fraction


def sizes_of(*arguments: str) -> tuple[float, float]:
    data = main([*FIT, *arguments], run=False).datamodule
    return data.val_size, data.test_size


def test_flags() -> None:
    assert sizes_of("--data.val_fraction", "0.3") == (0.3, 0.2)
    assert sizes_of("--data.init_args.test_fraction=0.3") == (0.15, 0.3)
    assert sizes_of("--data.val_fraction", "0.3", "--data.val_size", "100") == (100, 0.2)


@pytest.mark.slow
def test_configs(folder: Path) -> None:
    data = {"class_path": "Digits", "init_args": {"val_fraction": 0.3, "test_fraction": 0.1}}
    (folder / "old.yaml").write_text(yaml.safe_dump({"data": data}))
    assert sizes_of("--config", "old.yaml") == (0.3, 0.1)
    assert sizes_of("--config", "old.yaml", "--data.val_size", "0.25") == (0.25, 0.1)


def test_a_class_keeps_its_own_names() -> None:
    assert old_names(Mine) == {"val_fraction": "val_size"}
    assert (Mine(val_fraction=0.3).val_size, Mine(test_fraction="other").test_fraction) == (0.3, "other")


def test_an_unknown_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        sizes_of("--data.val_fractions", "0.3")
    assert "there is no argument `val_fractions`" in capsys.readouterr().err
