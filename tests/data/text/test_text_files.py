"""Text of a researcher: files, splits, words and bytes, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support.runs import trainer

from deq_lightning import JFB, DEQTransformer, FixedPointIteration, LanguageModeling, TextFiles
from deq_lightning.configured import CombinationError
from deq_lightning.data import DataError
from deq_lightning.data.text.vocabulary import Bytes, words_and_signs

TINY = {"batch_size": 1, "segment_length": 1}
TEXT = "Ein Bär, 12 Bären\n\nein bär -- it's\n"


def write(root: Path, **texts: str) -> Path:
    for name, text in texts.items():
        path = root / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="")
    return root


def ready(root: Path, **options: object) -> TextFiles:
    data = TextFiles(str(root), **{**TINY, **options})
    data.prepare_data()
    data.setup()
    return data


def shown(data: TextFiles) -> dict[str, str]:
    return {split: " ".join(data.vocabulary.words[n] for n in text) for split, text in data.texts.items()}


def test_words_of_all_alphabets() -> None:
    assert words_and_signs("Don't __init__(x1), ÉTÉ; мир 1٣") == [
        *("don't", "__", "init", "__", "(", "x", "1", ")", ",", "été", ";", "мир", "1٣")
    ]


def test_the_begin_trains_and_the_end_tests(tmp_path: Path) -> None:
    """Files one after the other by path, hidden ones and those of other kinds left out."""
    numbers = [f"w{'abcdefghij'[n]}" for n in range(10)]
    root = write(
        tmp_path,
        a_txt="\n".join(numbers[:4]),
        **{"b__deep__c_md": "\n".join(numbers[4:7]), "d_TXT": "\n".join(numbers[7:])},
        e_csv="no",
        **{"_f_txt": "no", "_git__g_txt": "no"},
    )
    data = TextFiles(str(root), vocab_size=12, val_size=6, test_size=0.2, **TINY)
    with pytest.raises(DataError, match="no word of the val split of `TextFiles` is in the vocabulary"):
        TextFiles(str(root), vocab_size=None, val_size=6, test_size=0.2, **TINY).setup()
    with pytest.raises(DataError, match="`vocab_size` must be at most 7, the words of the train split, got 12"):
        data.setup()
    data = TextFiles(str(root), val_size=6, test_size=0.2, **TINY)
    assert data.samples.words == 7 and data.split_sizes() == {"train": 10, "val": 6, "test": 4}
    assert shown(data)["train"] == "wa <eos> wb <eos> wc <eos> wd <eos> we <eos>"
    assert data.vocabulary.words == ["<unk>", "<eos>", "wa", "wb", "wc", "wd", "we"]


def test_files_of_splits(tmp_path: Path) -> None:
    root = write(tmp_path, train_txt="\ufeffa a b b c\r\na\r\n", test_txt="a c\n", other_txt="never")
    data = ready(root, val_size=2)
    assert shown(data) == {"train": "a a b b <unk> <eos>", "val": "a <eos>", "test": "a <unk> <eos>"}
    assert data.vocabulary.words == ["<unk>", "<eos>", "a", "b"]  # those that occur twice
    write(tmp_path, val_txt="b b b")
    assert shown(ready(root))["val"] == "b b b <eos>" and ready(root, vocab_size=4).samples.words == 4


def test_bytes_round_trip(tmp_path: Path) -> None:
    write(tmp_path, a_txt=TEXT, b_txt="x\t\u2028")
    data = ready(tmp_path, tokens="bytes", val_size=2, test_size=3)
    ids = np.concatenate([data.texts[split] for split in ("train", "val", "test")])
    expected = [byte + 2 for byte in TEXT.encode()] + [1] + [byte + 2 for byte in "x\t\u2028".encode()] + [1]
    assert ids.tolist() == expected and data.split_sizes() == {"train": len(ids) - 5, "val": 2, "test": 3}
    vocabulary = data.vocabulary
    assert len(vocabulary) == len(set(vocabulary.words)) == data.samples.words == 258 and data.unit == "bytes"
    assert vocabulary.text(ids) == TEXT + "\nx\\t\\u2028"
    assert vocabulary.encode([data.words(TEXT)]).tolist() == [*expected[: len(TEXT.encode())], 1]
    assert [vocabulary.words[n] for n in vocabulary.encode([data.words("Aä\n")])] == [
        "A",
        "<C3>",
        "<A4>",
        "<0A>",
        "<eos>",
    ]
    assert vocabulary.text([0, 1, 0xC3 + 2, 67]) == "�A" and Bytes().fingerprint == vocabulary.fingerprint


def test_a_model_learns_bytes_and_continues_a_prompt(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Of a text in which nothing is left to chance, after a few steps."""
    data = ready(write(tmp_path / "text", a_txt="abc\n" * 300), tokens="bytes", batch_size=4, segment_length=8)
    torch.manual_seed(0)
    sizes = dict(width=16, heads=2, inner_width=16, cutoffs=[], div_val=1, memory_length=8, init_std=None)
    net = DEQTransformer(258, **sizes, dropout=0.0, embedding_scale=1.0, solver=FixedPointIteration(max_steps=3))
    net.gradient = JFB()
    task = LanguageModeling(net, continue_words=6, temperature=0.0, optimizer=lambda p: torch.optim.Adam(p, 0.01))
    trainer(tmp_path, max_steps=40, limit_val_batches=0).fit(task, data)
    data.prompt = "abc\na"
    trainer(tmp_path).predict(task, data)
    assert capsys.readouterr().out.strip() == "abc\nabc\nabc"


def test_prompts_and_vocabularies(tmp_path: Path) -> None:
    one, other = (write(tmp_path / word, a_txt=f"{word} {word}\n" * 40) for word in ("ab", "cd"))
    words = ready(one, prompt="Ab? ab")
    assert [batch.tokens.tolist() for batch in words.predict_dataloader()] == [[[1, 2, 0, 2]]]
    said = r"trained with 3 words of `.*ab`; here are 3 words of `.*cd`. Set `root=PATH`, `tokens`, `vocab_size`, "
    with pytest.raises(DataError, match=said):
        ready(other).check_vocabulary(words.vocabulary_state())
    state = ready(one, tokens="bytes").vocabulary_state()
    ready(other, tokens="bytes").check_vocabulary(state)  # one for all texts
    with pytest.raises(DataError, match=r"trained with 258 words of `.*ab`; here are 3 words"):
        words.check_vocabulary(state)


def refused(root: Path, **options: object) -> str:
    with pytest.raises(DataError) as error:
        ready(root, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_texts_that_are_refused(tmp_path: Path) -> None:
    assert (
        refused(tmp_path / "x") == f"there is no `{tmp_path}/x`. Set `root=PATH` to name a folder of texts or a file."
    )
    assert f"`{tmp_path}` has no text in it (.txt or .md). Set `root=PATH`" in refused(tmp_path)
    write(tmp_path, a_txt=TEXT, b_txt=" \n")
    assert refused(tmp_path) == f"`{tmp_path}/b.txt` is empty. Write a text into it, or remove it."
    (tmp_path / "b.txt").write_bytes(b"abc \xfc")
    said = f"`{tmp_path}/b.txt` is not UTF-8: byte 4 is 0xfc. Save it as UTF-8, or leave it out."
    assert refused(tmp_path) == refused(tmp_path / "b.txt", tokens="bytes") == said
    (tmp_path / "b.txt").unlink()
    assert "`test_size` and `val_size` must leave some of the 13 words to train on, got 6 + 7." in refused(
        tmp_path, test_size=6, val_size=7
    )
    said = refused(tmp_path / "a.txt", tokens="bytes", segment_length=50)
    assert "bytes of the train split make 1 streams of 31 bytes, too short for a segment of 50 bytes" in said


def test_bytes_have_no_size_of_vocabulary() -> None:
    with pytest.raises(CombinationError, match="`vocab_size` counts words, and `tokens=bytes` has none"):
        TextFiles("x", tokens="bytes", vocab_size=300)
