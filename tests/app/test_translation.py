"""What the library says of arguments, as the command line says it."""

import pytest

from deq_lightning.app.messages import UsageError
from deq_lightning.app.translation import with_flags
from deq_lightning.configured import CombinationError
from deq_lightning.data import DataError


@pytest.mark.parametrize(
    ("error", "printed"),
    [
        (DataError("Set `root=PATH` to name it."), "Type `--data.root PATH` to name it."),
        (DataError("or set `download=True`."), "or type `--data.download true`."),
        (DataError("Set a smaller `batch_size=N`."), "Type a smaller `--data.batch_size N`."),
        (DataError("such as `data=WikiText2`"), "such as `--data WikiText2`"),
        (DataError("`vocab_size` must be 3, `net.vocab_size=4`"), "`vocab_size` must be 3, `--model.net.vocab_size 4`"),
        (DataError("from its `weights=PATH`."), "from its `--weights PATH`."),
        (CombinationError("Set `root=PATH`."), "Set `root=PATH`."),
        (CombinationError("Set `net.solver=Broyden()`."), "Type `--model.net.solver Broyden`."),
        ("use `gradient=UPG(k=5, damping=0.5)`", "use `--gradient UPG --gradient.k 5 --gradient.damping 0.5`"),
        ("`task.multilabel=False`", "`--model.multilabel false`"),
        ("`net.init_std=None`", "`--model.net.init_std null`"),
        ("`net.norm='pre'`", "`--model.net.norm pre`"),
        ("`net.cutoffs=[1, 2]`", "`--model.net.cutoffs '[1, 2]'`"),
        ("loosen `net.rtol`", "loosen `--model.net.rtol`"),
        (UsageError("Type `--data.root PATH`."), "Type `--data.root PATH`."),
    ],
)
def test_arguments_become_flags(error: str | Exception, printed: str) -> None:
    assert with_flags(error) == printed
