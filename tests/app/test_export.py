"""The `export` command: programs that answer as the checkpoint does."""

from pathlib import Path

import pytest
import torch
from support.runs import QUIET

import deq_lightning
from deq_lightning.cli import main


def expected(path: str, steps: int, x: torch.Tensor) -> torch.Tensor:
    task = deq_lightning.load(path)
    task.net.solver = task.net.solver.changed(max_steps=steps, eval_max_steps=None, check_every=1)
    with torch.no_grad():
        return task(x)


@pytest.mark.slow
def test_a_program_answers_for_batches_of_any_size(best: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["export", "--ckpt_path", best, "--steps", "5", *QUIET])
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith(f"{Path(best).with_name('model.pt2')}: input (batch, 1, 4), 5 solver steps; differs from")
    program = torch.export.load(Path(best).with_name("model.pt2")).module()
    x = torch.randn(7, 1, 4)
    torch.testing.assert_close(program(x), expected(best, 5, x))
    with pytest.raises(SystemExit) as end:
        main(["export", "--ckpt_path", best, "--steps", "0"])
    assert end.value.code == 2 and "`--steps` must be 1 or more, got 0" in capsys.readouterr().err


@pytest.mark.slow
def test_onnx_answers_for_batches_of_any_size(best: str, capsys: pytest.CaptureFixture[str]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    main(["export", "--ckpt_path", best, "--to", "onnx", "--steps", "3", "--output", "own/model.onnx", *QUIET])
    session = onnxruntime.InferenceSession("own/model.onnx", providers=["CPUExecutionProvider"])
    x = torch.randn(7, 1, 4)
    (answer,) = session.run(None, {"input": x.numpy()})
    torch.testing.assert_close(torch.as_tensor(answer), expected(best, 3, x), rtol=1e-4, atol=1e-5)
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main(["export", "--ckpt_path", best, "--to", "onnx", "--steps", "3", "--model.net.solver", "Anderson", *QUIET])
    assert end.value.code == 2
    assert "`EquilibriumReasoner` with `Anderson` has operations that ONNX lacks" in capsys.readouterr().err


@pytest.mark.slow
def test_what_has_no_tensors_as_inputs_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["fit", "--config", "karate_upg", "--trainer.max_steps", "1", "--test_after_fit", "false"]
    main([*run, "--name", "run", *QUIET])
    with pytest.raises(SystemExit) as end:
        main(["export", "--ckpt_path", "checkpoints/run/last.ckpt", *QUIET])
    assert end.value.code == 2 and "`export` takes models of images, tables and puzzles" in capsys.readouterr().err
