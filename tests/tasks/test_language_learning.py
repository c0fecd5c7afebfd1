"""A language model learns: more than counting pairs of words gives, and by its equilibrium."""

from pathlib import Path

import pytest
from support.runs import QUIET

from deq_lightning import Anderson
from deq_lightning.cli import main

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_a_trained_model_beats_bigrams_and_needs_its_equilibrium(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of `pydocs_upg`, in 9 of its 21 epochs."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    from kneser_ney import kneser_ney_perplexity

    cli = main(["fit", "--config", "pydocs_upg", *QUIET, "--trainer.max_epochs", "9"])
    train, test = (cli.datamodule.texts[split].tolist() for split in ("train", "test"))
    bigrams = kneser_ney_perplexity(train, test, 2, len(cli.datamodule.vocabulary))
    cli.model.gradient.k = 1  # the strategy's own steps are a part of the answer too
    perplexity = {}
    for steps in (2, 12, 30):
        cli.model.net.solver = Anderson(max_steps=steps, rtol=0, history=5)
        (metrics,) = cli.trainer.test(cli.model, cli.datamodule, verbose=False)
        perplexity[steps] = metrics["test_ppl"]
    assert perplexity[12] < bigrams
    assert perplexity[2] > 1.2 * perplexity[12]
    assert perplexity[30] == pytest.approx(perplexity[12], rel=0.01)
