"""Texts become ids and contiguous streams, exactly."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from deq_lightning import PythonDocs, WikiText2, WikiText103
from deq_lightning.data import DataError, DatasetNotFoundError, SplitError, StreamBatch, Vocabulary
from deq_lightning.data.text.python_docs import paragraphs
from deq_lightning.data.text.streams import StreamLoader

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"


# --- streams


def test_segments_are_columns_of_the_streams() -> None:
    """Of the words 0, 1, 2, … the word in stream r and column c is r · columns + c, and its target the one after."""
    loader = StreamLoader(np.arange(103, dtype=np.int32), streams=5, length=6)
    batches = list(loader)
    assert len(loader) == len(batches) == 4
    assert [batch.tokens.shape for batch in batches] == [(5, 6), (5, 6), (5, 6), (5, 1)]
    for number, (tokens, targets, first, memory) in enumerate(batches):
        expected = 20 * torch.arange(5)[:, None] + 6 * number + torch.arange(tokens.shape[1])
        assert tokens.dtype == targets.dtype == torch.int64
        assert torch.equal(tokens, expected) and torch.equal(targets, expected + 1)
        assert first == (number == 0) and memory is None


@pytest.mark.parametrize(("words", "streams", "length"), [(50, 1, 7), (50, 7, 6), (49, 7, 6), (64, 4, 15), (12, 4, 2)])
def test_every_word_but_the_last_of_a_stream_is_seen_once(words: int, streams: int, length: int) -> None:
    text = np.random.default_rng(0).permutation(words)
    matrix = torch.from_numpy(text[: words // streams * streams].reshape(streams, -1))
    batches = list(StreamLoader(text, streams, length))
    assert torch.equal(torch.cat([batch.tokens for batch in batches], dim=1), matrix[:, :-1])
    assert torch.equal(torch.cat([batch.targets for batch in batches], dim=1), matrix[:, 1:])


def test_processes_share_the_streams() -> None:
    text = np.arange(100)
    whole = list(StreamLoader(text, 6, 5))
    shares = [list(StreamLoader(text, 6, 5, (rank, 3))) for rank in range(3)]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert all(len(part.tokens) == 2 for part in parts)
        assert torch.equal(torch.cat([part.tokens for part in parts]), batch.tokens)
        assert torch.equal(torch.cat([part.targets for part in parts]), batch.targets)


def test_published_numbers_of_steps() -> None:
    """WikiText-103's training split, 56 streams, segments of 150: 12,289 steps an epoch."""
    assert len(StreamLoader(np.broadcast_to(np.int32(2), 103_227_021), 56, 150)) == 12_289


def test_a_resumed_pass_begins_in_the_middle_and_the_next_one_does_not() -> None:
    starts = iter([2, 0])
    loader = StreamLoader(np.arange(103), 5, 6, start=lambda: next(starts))
    iterator = iter(loader)  # asks for nothing yet
    assert [batch.tokens[0, 0].item() for batch in iterator] == [12, 18]
    assert len(loader) == len(list(loader)) == 4


# --- words


def test_the_most_frequent_words_come_first() -> None:
    counts = Counter("b a a c c d <unk> <unk> <unk> <eos>".split())
    assert Vocabulary.most_frequent(counts, None).words == ["<unk>", "<eos>", "a", "c", "b", "d"]
    assert Vocabulary.most_frequent(counts, 4).words == ["<unk>", "<eos>", "a", "c"]
    vocabulary = Vocabulary.most_frequent(counts, 5)
    assert vocabulary.encode([["a", "d", "<unk>"], [], ["b"]]).tolist() == [2, 0, 0, 1, 1, 4, 1]
    assert vocabulary.text([1, 2, 3, 1, 1, 4]) == "a c\n\nb"
    assert vocabulary.fingerprint != Vocabulary.most_frequent(counts, 4).fingerprint


def test_paragraphs_are_cleaned() -> None:
    topics = {
        "b": "Again\n*****\n\nSecond   one\nends.\n\n  \n\n   >>> code()\n\nstmt ::= 'x'",
        "a": "First -- a *word*\n\nSecond one\nends.",
    }
    assert list(paragraphs(topics)) == ["First -- a *word*", "Second one ends.", "Again"]
    assert PythonDocs().words("Don't __init__(x1), Été") == [
        *("don't", "__", "init", "__", "(", "x", "1", ")", ",", "t")
    ]


def test_the_ninth_block_validates_and_the_tenth_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    number = [f"{'abcdefghij'[n // 100]}{'abcdefghij'[n // 10 % 10]}{'abcdefghij'[n % 10]}" for n in range(250)]
    monkeypatch.setattr("pydoc_data.topics.topics", {"all": "\n\n".join(number)})
    data = PythonDocs(vocab_size=None, batch_size=2, segment_length=3)
    # A word of its own in every paragraph: the other splits know none of them.
    with pytest.raises(DataError, match="no word of the val split of `PythonDocs` is in the vocabulary"):
        data.setup()
    train = [n for n in range(250) if n // 10 % 10 < 8]
    assert data.vocabulary.words == ["<unk>", "<eos>", *(number[n] for n in train)]
    assert data.texts["train"].tolist() == [id for row in range(len(train)) for id in (row + 2, 1)]
    assert {split: len(data.texts[split]) for split in ("val", "test")} == {"val": 40, "test": 40}


def test_python_docs_have_their_default_vocabulary() -> None:
    data, everything = PythonDocs(), PythonDocs(vocab_size=None)
    for one in (data, everything):
        one.prepare_data()
        one.setup()
    assert len(data.vocabulary) == 1800 and data.vocabulary.words == everything.vocabulary.words[:1800]
    counts = np.bincount(everything.texts["train"])
    assert (np.diff(counts[2:]) <= 0).all() and counts[1799] >= 2
    sizes = {split: len(text) for split, text in data.texts.items()}
    assert 50_000 < sizes["train"] < 100_000 and all(
        0.08 < sizes[split] / sizes["train"] < 0.2 for split in ("val", "test")
    )
    assert all((text == 0).mean() < 0.06 for text in data.texts.values())
    lines = {split: set(everything.vocabulary.text(text).split("\n")) for split, text in everything.texts.items()}
    long = {split: {line for line in some if len(line) > 200} for split, some in lines.items()}
    assert not long["train"] & long["test"] and not long["train"] & long["val"]


def test_python_without_its_documentation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(DatasetNotFoundError, match=r"which this Python lacks. Install its whole standard library"):
        PythonDocs().prepare_data()


# --- WikiText


def write(root: Path, train: str, valid: str = "a \n", test: str = "b \n", pattern: str = "wiki.{}.tokens") -> str:
    root.mkdir(exist_ok=True)
    for split, text in {"train": train, "valid": valid, "test": test}.items():
        (root / pattern.format(split)).write_text(text, encoding="utf-8")
    return str(root)


def ready(root: str, **options: object) -> WikiText2:
    data = WikiText2(root, **{"batch_size": 1, "eval_batch_size": 1, "segment_length": 1, **options})
    data.prepare_data()
    data.setup()
    return data


@pytest.mark.parametrize("pattern", ["wiki.{}.tokens", "{}.txt"])
def test_lines_become_ids(pattern: str, tmp_path: Path) -> None:
    root = write(tmp_path, " \n = É = \n b <unk> b \n", " É b ? \n", "\n b", pattern)
    data = ready(root)
    assert data.vocabulary.words == ["<unk>", "<eos>", "=", "b", "É"]
    assert {split: text.tolist() for split, text in data.texts.items()} == {
        "train": [1, 2, 4, 2, 1, 3, 0, 3, 1],
        "val": [4, 3, 0, 1],
        "test": [1, 3, 1],
    }
    assert all(isinstance(text, np.memmap) and text.dtype == np.int32 for text in data.texts.values())
    few = ready(root, vocab_size=4)
    assert few.texts["train"].tolist() == [1, 2, 0, 2, 1, 3, 0, 3, 1]
    assert few.words("A  b ") == ["A", "b"]


def test_ids_are_made_once_and_again_when_the_text_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, folder = write(tmp_path, "a b \n", test="a \n"), tmp_path / "encoded"
    ready(root), ready(root, vocab_size=3)
    assert len(list(folder.iterdir())) == 2
    (folder / "not-ours").mkdir()
    written = []
    monkeypatch.setattr(WikiText2, "_encode", lambda self, *args: written.append(super(WikiText2, self)._encode(*args)))
    ready(root), ready(root, vocab_size=3)
    assert written == []
    write(tmp_path, "a b b \n", valid="b \n")
    assert ready(root).texts["train"].tolist() == [3, 2, 2, 1]
    assert len(written) == 1
    assert len(list(folder.iterdir())) == 2 and (folder / "not-ours").is_dir()  # those of the old text are gone
    before = (tmp_path / "wiki.test.tokens").stat().st_mtime_ns
    os.utime(tmp_path / "wiki.test.tokens", ns=(before, before + 1))
    ready(root)
    assert len(written) == 2
    assert all(part.suffix in (".npy", ".json") for one in folder.iterdir() for part in one.iterdir())


def test_ids_are_written_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write(tmp_path, "a b \n")
    (tmp_path / "wiki.test.tokens").write_bytes(b"caf\xe9 \n")
    with pytest.raises(DatasetNotFoundError, match=r"is damaged \(.*can't decode byte 0xe9.*\). Unpack https://"):
        ready(root)
    assert list((tmp_path / "encoded").iterdir()) == []
    write(tmp_path, "a b \n")
    original = WikiText2._encode

    def beaten(self: WikiText2, *args: object) -> None:
        """Another process ends first."""
        monkeypatch.setattr(WikiText2, "_encode", original)
        ready(root)
        original(self, *args)

    monkeypatch.setattr(WikiText2, "_encode", beaten)
    assert ready(root).texts["train"].tolist() == [2, 3, 1]
    (made,) = (tmp_path / "encoded").iterdir()
    whole = (made / "val.npy").read_bytes()
    for damaged in (whole[:-2], whole[:5], b""):
        (made / "val.npy").write_bytes(damaged)
        with pytest.raises(DatasetNotFoundError, match=r"is damaged \(.*\). Delete it and try again."):
            ready(root)


def test_ids_that_cannot_be_written(tmp_path: Path) -> None:
    root = write(tmp_path, "a b \n")
    (tmp_path / "encoded").write_text("in the way")
    with pytest.raises(DataError, match=r"cannot be written to `.*/encoded/` \(.*\). Make room, or set `root=PATH"):
        ready(root)
    with pytest.raises(DatasetNotFoundError, match=r"is not prepared. Call `prepare_data\(\)` before `setup\(\)`."):
        WikiText2(root).setup()


@pytest.mark.parametrize(("kind", "folder"), [(WikiText2, "wikitext-2"), (WikiText103, "wikitext-103")])
def test_a_missing_text_says_what_is_expected_where(
    kind: type[WikiText2], folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasetNotFoundError) as caught:
        kind().prepare_data()
    assert str(caught.value) == (
        f"`{kind.__name__}` was not found under `data/{folder}/` (expected `wiki.train.tokens`, `wiki.valid.tokens`, "
        f"`wiki.test.tokens`). Unpack https://wikitext.smerity.com/{folder}-v1.zip, or set `root=PATH` to name "
        "the folder that holds the files."
    )


def test_words_that_would_move_the_cursor_are_shown_escaped(tmp_path: Path) -> None:
    data = ready(write(tmp_path, "a \x1b[2Jb c\u202e\x9bd \u200d é \n" * 9, "a a \n", "a a \n"))
    ids = data.vocabulary.encode([["a", "\x1b[2Jb", "c\u202e\x9bd", "\u200d", "é"]])
    assert (ids[:-1] >= 2).all()  # the words themselves are as in the file
    assert data.vocabulary.text(ids.tolist()) == "a \\x1b[2Jb c\\u202e\\x9bd \u200d é"


def test_errors_quote_control_characters_escaped(tmp_path: Path) -> None:
    root = tmp_path / "a\x1b]0;title\x07\nb"
    with pytest.raises(DatasetNotFoundError) as error:
        WikiText2(str(root)).prepare_data()
    assert f"`WikiText2` was not found under `{tmp_path}/a\\x1b]0;title\\x07\\nb/`" in str(error.value)
    again = str(DataError(str(error.value)))
    assert again == str(error.value)  # and once only


def test_texts_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the train split has no words"):
        ready(write(tmp_path, " \n\n"))
    with pytest.raises(DataError, match="no word of the val split of `WikiText2` is in the vocabulary"):
        ready(write(tmp_path, "a b \n", valid="c d \n"))
    with pytest.raises(DataError, match="no word of the test split"):
        ready(write(tmp_path, "a b \n", test=""))
    root = write(tmp_path, "a b " * 20 + "\n", "a b " * 5 + "\n", "a " * 7 + "\n")
    with pytest.raises(DataError, match=r"`vocab_size` must be at most 4, .* got 9. Set `vocab_size=4`"):
        ready(root, vocab_size=9)
    with pytest.raises(
        SplitError, match=r"the 41 words of the train split make 4 streams of 10 words, .* segment of 10 "
    ):
        ready(root, batch_size=4, segment_length=10, eval_segment_length=2)
    with pytest.raises(SplitError, match=r"Set `eval_segment_length=10`."):
        ready(root, batch_size=4, segment_length=9, eval_segment_length=11)
    with pytest.raises(
        SplitError, match=r"the 11 words of the val split make 4 streams of 2 words, .* `eval_segment_length=1`"
    ):
        ready(root, eval_batch_size=4, eval_segment_length=2)
    with pytest.raises(
        SplitError, match=r"the 11 words of the val split make 8 streams of 1 words, .* a smaller `eval_batch_size=N"
    ):
        ready(root, eval_batch_size=8)
    fitting = ready(root, batch_size=4, segment_length=9, eval_segment_length=7)
    assert [len(batch.tokens) for batch in fitting.train_dataloader()] == [4]


@pytest.mark.parametrize(
    "options",
    [{"vocab_size": 2}, {"batch_size": 0}, {"eval_batch_size": 0}, {"segment_length": 0}, {"eval_segment_length": 0}],
)
def test_arguments_out_of_range(options: dict[str, int]) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        PythonDocs(**options)


# --- prompts and checkpoints


def test_a_prompt_becomes_one_stream(tmp_path: Path) -> None:
    root = write(tmp_path, "a b a \n")
    data = ready(root, prompt="b zebra a")
    ((tokens, targets, first, _),) = data.predict_dataloader()
    assert tokens.tolist() == [[1, 3, 0, 2]] and targets.shape == (1, 0) and first
    assert next(iter(ready(root).predict_dataloader())).tokens.tolist() == [[1]]
    for prompt in ("zebra", "", "<unk>"):
        with pytest.raises(DataError, match=r"no word of the prompt .* is in the vocabulary. Set `prompt=TEXT`"):
            ready(root, prompt=prompt).predict_dataloader()
    with pytest.raises(RuntimeError, match=r"`WikiText2` is empty. Call `setup"):
        WikiText2(root).train_dataloader()


def test_another_vocabulary_than_the_checkpoints_is_refused(tmp_path: Path) -> None:
    data, other = ready(write(tmp_path / "one", "a b \n")), ready(write(tmp_path / "other", "b a \n", "a \n"))
    state = data.vocabulary_state()
    assert json.loads(json.dumps(state)) == state
    ready(str(tmp_path / "one")).check_vocabulary(state)
    with pytest.raises(
        DataError, match=r"trained with 4 words of WikiText2; here are 4 words of WikiText2. Set `root=P"
    ):
        other.check_vocabulary(state)


def test_batches_travel_as_what_they_are() -> None:
    """Through Lightning's own transfer, which may rebuild them."""
    batch = StreamBatch(torch.zeros(1, 2), torch.ones(1, 2), True)
    assert isinstance(pl.LightningModule().transfer_batch_to_device(batch, torch.device("cpu"), 0), StreamBatch)


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "install.py").is_file(), reason="needs shared/data beside the repository")
def test_the_real_files_have_the_published_sizes(tmp_path: Path) -> None:
    command = [sys.executable, str(SHARED / "install.py"), str(tmp_path), "wikitext2", "wikitext103"]
    subprocess.run(command, check=True, capture_output=True)
    two, whole = WikiText2(str(tmp_path / "wikitext-2")), WikiText103(str(tmp_path / "wikitext-103"))
    for data in (two, whole):
        data.prepare_data()
        data.setup()
        assert {split: len(data.texts[split]) for split in ("val", "test")} == {"val": 217_646, "test": 245_569}
    assert len(two.vocabulary) == 33_278 and len(two.texts["train"]) == 2_088_628
