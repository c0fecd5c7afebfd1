"""The table of predictions."""

import re

import pytest

from deq_lightning import PredictionWriter


@pytest.mark.parametrize(("path", "got"), [(".", "."), ("", "''")])
def test_predictions_are_not_written_to_a_folder(path: str, got: str) -> None:
    message = f"`path` must be a file, got {got}. Add a name, such as predictions.csv."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        PredictionWriter(path)
