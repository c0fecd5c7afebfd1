"""A checkpoint from a stranger runs nothing, writes nothing elsewhere and deletes nothing."""

import copy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import pytest
import torch
import yaml
from support.marks import slow

import deq_lightning
from deq_lightning import ImageClassification
from deq_lightning.app.found import found_config
from deq_lightning.app.storage import LocalCheckpoints
from deq_lightning.cli import main
from deq_lightning.trust import foreign_names, unfolded

SAVED = Path(__file__).parents[1] / "support" / "saved" / "digits_upg_0_1_0"
EVIL = """
from pathlib import Path
import pytorch_lightning as pl
Path("executed").touch()
class Cb(pl.Callback):
    def __init__(self, *args, **kwargs): Path("executed").touch()
"""


@pytest.fixture
def stranger(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stranger's run in the current folder, with a module of his that could be imported."""
    shutil.copytree(SAVED, folder / "stranger")
    (folder / "stranger" / "evil.py").write_text(EVIL)
    monkeypatch.syspath_prepend(folder)
    yield folder / "stranger"
    for name in [name for name in sys.modules if name.split(".")[0] == "stranger"]:
        del sys.modules[name]


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run, and return the one line of the refusal."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    lines = capsys.readouterr().err.strip().splitlines()
    assert exit_.value.code == 2
    assert len(lines) == 1, lines
    return lines[0]


def rewrite(run: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the config of a run."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    change(config)
    (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


def set_to(*keys: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(config: dict[str, Any]) -> None:
        for key in keys[:-1]:
            config = config.setdefault(key, {})
        config[keys[-1]] = copy.deepcopy(value)

    return change


CLASS = {"class_path": "stranger.evil.Cb"}
SYSTEM = {"class_path": "pytorch_lightning.callbacks.LambdaCallback", "init_args": {"setup": "os.system"}}
CSV = "pytorch_lightning.loggers.CSVLogger"
NET = ("model", "init_args", "net", "init_args")
ATTACKS = {
    "a callback": (set_to("trainer", "callbacks", value=[CLASS]), "stranger.evil.Cb"),
    "a strategy of the wrong kind": (set_to("gradient", value=CLASS), "stranger.evil.Cb"),
    "a name alone": (set_to("model", "init_args", "net", value="stranger.evil.Cb"), "stranger.evil.Cb"),
    "a section as a name": (set_to("gradient", value="stranger.evil.Cb"), "`gradient` must be a section"),
    "within a text": (set_to(*NET, "solver", value="{class_path: stranger.evil.Cb}"), "stranger.evil.Cb"),
    "within a file": (set_to(*NET, "solver", value="stranger/more.txt"), "stranger.evil.Cb"),
    "a function": (set_to("trainer", "callbacks", value=[SYSTEM]), "LambdaCallback"),
    "a function by itself": (set_to("model", "init_args", "optimizer", value="os.system"), "os.system"),
    "by way of a library": (set_to("gradient", value={"class_path": "torch.optim.lr_scheduler.math.exp"}), "math.exp"),
    "by way of ours": (set_to("gradient", value={"class_path": "deq_lightning.files.os.system"}), "os.system"),
    "a dotted key": (set_to("trainer.callbacks", value=[CLASS]), "no setting of a run"),
    "a subcommand's section": (set_to("test", value={"trainer": {"callbacks": [CLASS]}}), "no setting of a run"),
    "predictions elsewhere": (set_to("predictions", "path", value="../../x.csv"), "predictions.path"),
    "checkpoints elsewhere": (set_to("last_checkpoint", "dirpath", value="elsewhere"), "last_checkpoint.dirpath"),
    "a file name with a way": (set_to("best_checkpoint", "filename", value="../x"), "best_checkpoint.filename"),
    "healthy ones elsewhere": (set_to("guard", "dirpath", value="/"), "guard.dirpath"),
    "curves elsewhere": (
        set_to("trainer", "logger", value={"class_path": CSV, "init_args": {"save_dir": "elsewhere"}}),
        "save_dir",
    ),
    "curves elsewhere by name": (
        set_to("trainer", "logger", value={"class_path": CSV, "init_args": {"save_dir": "stranger", "name": "../x"}}),
        "name",
    ),
    "a profile": (
        set_to("trainer", "profiler", value={"class_path": "pytorch_lightning.profilers.SimpleProfiler"}),
        "SimpleProfiler",
    ),
}


@pytest.mark.parametrize("subcommand", ["test", "fit"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_trust_in_a_found_config_ends_at_its_folder(
    attack: str, subcommand: str, stranger: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, named = ATTACKS[attack]
    (stranger / "more.txt").write_text("class_path: stranger.evil.Cb\n")
    rewrite(stranger, change)
    before = sorted(stranger.parent.rglob("*"))
    line = refused([subcommand, "--ckpt_path", "stranger/best.ckpt"], capsys)
    assert "found beside the checkpoint, not typed" in line and "--trust_config true" in line
    assert named in line
    assert sorted(path for path in stranger.parent.rglob("*") if "__pycache__" not in path.parts) == before


@pytest.mark.slow
def test_trust_is_typed(stranger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewrite(stranger, ATTACKS["a callback"][0])
    rewrite(stranger, set_to("trust_config", value=True))  # its own word does not count
    refused(["fit", "--ckpt_path", "stranger/last.ckpt"], capsys)
    more = ["--trainer.max_epochs", "2", "--trainer.enable_progress_bar", "false"]
    epochs = torch.load("stranger/best.ckpt", weights_only=True)["epoch"] + 2
    more[1] = str(epochs)
    main(["fit", "--ckpt_path", "stranger/best.ckpt", "--trust_config", "true", *more])
    assert Path("executed").exists()
    assert capsys.readouterr().out.splitlines()[-1].endswith("--trust_config true")  # what `predict` needs
    Path("executed").unlink()
    with pytest.raises(SystemExit):  # a config that is typed is trusted, here to name something of a wrong kind
        main(["test", "--config", "stranger/config.yaml", "--gradient", "stranger.evil.Cb", "--ckpt_path", "null"])


def test_trust_leaves_an_ordinary_run_alone(stranger: Path) -> None:
    assert yaml.safe_load(found_config(stranger / "config.yaml", continues=True))["model"]
    used = yaml.safe_load(found_config(stranger / "config.yaml", continues=False))
    assert set(used) <= {"model", "data", "gradient", "seed_everything"}


def test_trust_forgets_downloads_and_where_new_runs_go(stranger: Path) -> None:
    rewrite(stranger, set_to("data", value={"class_path": "MNIST", "init_args": {"root": "x", "download": True}}))
    rewrite(stranger, set_to("trainer", "default_root_dir", value="/elsewhere"))
    used = yaml.safe_load(found_config(stranger / "config.yaml", continues=True))
    assert used["data"]["init_args"] == {"root": "x"}
    assert "default_root_dir" not in used["trainer"]


@pytest.mark.parametrize(
    ("name", "free"),
    [
        ("torch.optim.Adam", True),
        ("torch.optim.lr_scheduler.StepLR", True),
        ("torchvision.transforms.v2.RandomCrop", True),
        ("pytorch_lightning.callbacks.EarlyStopping", True),
        ("pytorch_lightning.cli.ReduceLROnPlateau", True),
        ("deq_lightning.MDEQ", True),
        ("deq_lightning.cli.main", False),
        ("pytorch_lightning.callbacks.LambdaCallback", False),
        ("pytorch_lightning.Trainer", False),
        ("torch.optim.swa_utils.update_bn", False),
        ("subprocess.Popen", False),
        ("os.path.join", False),
        ("no_such_package_anywhere.Name", True),  # nothing could be imported
        ("val_acc", True),
        ("test.csv", True),  # there is a package `test`
        ("json.npz", True),
        ("a sentence. Another", True),
    ],
)
def test_trust_by_name(name: str, free: bool) -> None:
    assert [found for _, found in foreign_names({"key": name})] == ([] if free else [name])


def test_trust_is_not_worn_out(stranger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bomb = "a: &a [1, 1]\n" + "".join(
        f"{chr(97 + n)}: &{chr(97 + n)} [{', '.join([f'*{chr(96 + n)}'] * 10)}]\n" for n in range(1, 12)
    )
    (stranger / "config.yaml").write_text(bomb)
    assert "must hold the settings of a run" in refused(["test", "--ckpt_path", "stranger/best.ckpt"], capsys)


@pytest.mark.parametrize("head", ["", "# comment\n" * 10**4, "{", "- 1\n"])
def test_trust_is_not_lost_in_long_files(head: str, stranger: Path) -> None:
    """What is too long to be looked through is refused, unless no settings can be in it."""
    filler = "".join(f"key{n}: [1, 2, 3, 4, 5, 6, 7, 8]\n" for n in range(40_000))
    (stranger / "long.yaml").write_text(head + filler + "class_path: stranger.evil.Cb\n")
    with pytest.raises(ValueError, match="too many settings"):
        unfolded({"gradient": "stranger/long.yaml"})
    (stranger / "long.csv").write_text("a,b\n" + "1,2\n" * 300_000)
    (stranger / "long.npz").write_bytes(bytes(range(256)) * 5000)
    data = {"path": "stranger/long.csv", "root": "stranger/long.npz"}
    assert unfolded(data) == data


def test_trust_looks_into_texts_and_nothing_more(folder: Path) -> None:
    assert unfolded({"prompt": "the class: x", "name": "best-{epoch}", "size": "[3, 4]"}) == {
        "prompt": "the class: x",
        "name": "best-{epoch}",
        "size": "[3, 4]",
    }
    assert unfolded(["{class_path: x.Y, init_args: {z: '{class_path: v.W}'}}"]) == [
        {"class_path": "x.Y", "init_args": {"z": {"class_path": "v.W"}}}
    ]


# --- the checkpoint by itself ---

KEY = "ModelCheckpoint{'monitor': 'val_acc', 'mode': 'max'}"


def tampered(run: Path, change: Callable[[dict[str, Any]], Any]) -> str:
    """Give a checkpoint a changed state of the callback that writes the best one."""
    checkpoint = torch.load(run / "best.ckpt", weights_only=True)
    score = torch.tensor(0.9)
    state = {
        "best_model_path": "best.ckpt",
        "best_model_score": score,
        "dirpath": "",
        "kth_best_model_path": "best.ckpt",
    }
    state["best_k_models"] = {"best.ckpt": score}
    change(state)
    checkpoint["callbacks"][KEY] = state
    torch.save(checkpoint, run / "best.ckpt")
    return "stranger/best.ckpt"


@pytest.mark.parametrize(
    "elsewhere", ["local:///victim", slow("http://localhost:9/x.ckpt"), slow("stranger/../victim")]
)
def test_trust_in_the_paths_of_a_checkpoint(elsewhere: str, stranger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("victim").mkdir()
    for key in ("best_model_path", "kth_best_model_path"):
        path = tampered(stranger, lambda state, key=key: state.update({key: elsewhere}))
        line = refused(["fit", "--config", "stranger/config.yaml", "--ckpt_path", path], capsys)
        assert elsewhere in line and "--weights" in line


def test_trust_finds_no_other_files_than_those_in_the_folder(stranger: Path) -> None:
    Path("victim").mkdir()
    Path("victim/other.ckpt").touch()
    (stranger / "link.ckpt").symlink_to(Path("victim/other.ckpt").resolve())
    for name in (str(Path("victim/other.ckpt").resolve()), "stranger/link.ckpt"):
        path = tampered(stranger, lambda state, name=name: state.update(best_model_path=name))
        found = LocalCheckpoints().load_checkpoint(path)
        state = found["callbacks"][KEY]
        assert state["best_model_path"] == "" and state["best_model_score"] is None
    LocalCheckpoints().remove_checkpoint("victim")
    assert Path("victim").is_dir()


def test_trust_of_a_trainer_is_in_plain_data(stranger: Path) -> None:
    class Call:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (Path("executed"),)

    torch.save({"state_dict": {}, "more": Call()}, stranger / "best.ckpt")
    with pytest.raises(Exception, match="was not loaded"):
        LocalCheckpoints().load_checkpoint(stranger / "best.ckpt", weights_only=False)
    with pytest.raises(Exception, match="there is no checkpoint"):
        LocalCheckpoints().load_checkpoint("http://localhost:9/x.ckpt")
    assert not Path("executed").exists()


def test_trust_in_hyper_parameters(stranger: Path) -> None:
    checkpoint = torch.load(stranger / "best.ckpt", weights_only=True)
    assert ImageClassification.load_from_checkpoint(stranger / "best.ckpt").net is not None
    for change in (
        lambda given: given["net"]["init_args"].update(solver=CLASS),
        lambda given: given.update(net="stranger.evil.Cb"),
        lambda given: given.update(_class_path="stranger.evil.Cb"),
        lambda given: given.update(_instantiator="os.system"),
    ):
        changed = copy.deepcopy(checkpoint)
        change(changed["hyper_parameters"])
        torch.save(changed, stranger / "changed.ckpt")
        with pytest.raises(ValueError, match=r"which is not of this program.*trust_config=True"):
            ImageClassification.load_from_checkpoint(stranger / "changed.ckpt")
    assert not Path("executed").exists()
    with pytest.raises(Exception):  # noqa: B017  # whatever a class of a wrong kind raises
        ImageClassification.load_from_checkpoint(stranger / "changed.ckpt", trust_config=True)


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", ".", "..", ""])
def test_trust_keeps_runs_in_their_folder(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--config", "digits_upg", "--name", name]
    if name:  # an empty name is none
        assert "--name" in refused(["fit", *arguments], capsys)
        assert list(folder.iterdir()) == []


class Declared:
    """A class that a library has declared to be safe."""


def test_trust_ignores_what_others_declare_to_be_safe(folder: Path) -> None:
    torch.save({"state_dict": {}, "hyper_parameters": {"net": Declared()}}, "other.ckpt")
    with torch.serialization.safe_globals([Declared]):
        assert isinstance(torch.load("other.ckpt", weights_only=True)["hyper_parameters"]["net"], Declared)
        for load in (deq_lightning.load, ImageClassification.load_from_checkpoint):
            with pytest.raises((ValueError, UnpicklingError), match=r"not loaded|was not an allowed global"):
                load("other.ckpt")
        assert Declared in torch.serialization.get_safe_globals()
