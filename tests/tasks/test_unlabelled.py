"""Predictions of inputs that have no labels."""

import torch

from deq_lightning import MDEQSegmentation, SemanticSegmentation
from deq_lightning.tasks import DensePrediction


def test_the_table_has_what_needs_no_labels() -> None:
    torch.manual_seed(0)
    net = MDEQSegmentation(num_classes=3, channels=(4, 8), groups=2)
    task, x = SemanticSegmentation(net, num_classes=3), torch.randn(2, 3, 16, 16)
    table, labelled = task.predict(x), task.eval().predict_step((x, torch.zeros(2, 16, 16).long()), 0)
    assert table.keys() == labelled.keys() - {"accuracy"} | {"converged"}
    assert all(torch.allclose(table[name], labelled[name]) for name in table.keys() & labelled.keys())
    logits = torch.randn(2, 4, 5)
    columns = DensePrediction.columns(task, logits, None)
    assert columns.keys() == {"answer"}
    assert list(columns["answer"]) == [" ".join(map(str, row)) for row in logits.argmax(dim=1).tolist()]
