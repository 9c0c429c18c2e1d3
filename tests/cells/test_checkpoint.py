"""Checkpoints on disk: whole or not at all, and refused when they are not what they say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cellstream.cells import StackConfig
from cellstream.cells.checkpoint import Checkpoint, Record, load_checkpoint, save_checkpoint
from cellstream.errors import CheckpointInvalid, ModelFileMissing
from cellstream.text import ByteTokenizer, CharacterTokenizer


def checkpoint(seed: int = 0, *, values: bool = False) -> Checkpoint:
    """A tiny one with weights of its own."""
    kind = {"input": "values", "features": 2} if values else {"vocabulary_size": 3}
    config = StackConfig(cell="gru", layers=1, hidden_size=2, embedding_size=2, **kind)
    random = np.random.default_rng(seed)
    return Checkpoint(
        config=config,
        weights={
            name: random.normal(size=shape).astype(np.float32)
            for name, shape in config.weight_shapes().items()
        },
        tokenizer=None if values else CharacterTokenizer("abc"),
        record=Record(name="tiny", training_data_sha256="ab" * 32, metrics={"seconds": 1.5}),
    )


def assert_same(found: Checkpoint, expected: Checkpoint) -> None:
    """Compare all that a checkpoint holds."""
    assert found.config == expected.config
    assert found.tokenizer == expected.tokenizer
    assert found.record == expected.record
    for name, weight in expected.weights.items():
        np.testing.assert_array_equal(found.weights[name], weight, strict=True)


@pytest.mark.parametrize("values", [False, True])
def test_a_checkpoint_survives_its_files(tmp_path: Path, *, values: bool) -> None:
    """Export reads what training wrote, bit for bit, for tokens and for values."""
    save_checkpoint(tmp_path / "run" / "checkpoint", checkpoint(values=values), {"CARD.md": b"card"})
    assert_same(load_checkpoint(tmp_path / "run" / "checkpoint"), checkpoint(values=values))
    assert (tmp_path / "run" / "checkpoint" / "CARD.md").read_bytes() == b"card"


def test_a_new_checkpoint_takes_the_place_of_the_old_and_leaves_nothing(tmp_path: Path) -> None:
    """Ten checkpoints a run must not fill the disk."""
    for seed in range(3):
        save_checkpoint(tmp_path / "checkpoint", checkpoint(seed))
    assert_same(load_checkpoint(tmp_path / "checkpoint"), checkpoint(2))
    assert len(list(tmp_path.iterdir())) == 2  # the link and what it names


@pytest.mark.parametrize("function", ["os.fsync", "numpy.savez", "pathlib.Path.replace"])
def test_a_full_disk_leaves_the_old_checkpoint_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    """Whatever fails on the way, an hour of training is not lost to it."""
    save_checkpoint(tmp_path / "checkpoint", checkpoint(1))

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(function, fail)
        with pytest.raises(OSError, match="No space left"):
            save_checkpoint(tmp_path / "checkpoint", checkpoint(2))
    assert_same(load_checkpoint(tmp_path / "checkpoint"), checkpoint(1))
    assert len(list(tmp_path.iterdir())) == 2


def test_an_interrupt_after_the_rename_leaves_the_new_checkpoint_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C comes at any moment: what the link names by then must not be taken away."""
    save_checkpoint(tmp_path / "checkpoint", checkpoint(1))
    replace = Path.replace

    def interrupted(self: Path, target: Path) -> None:
        replace(self, target)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path / "checkpoint", checkpoint(2))
    assert_same(load_checkpoint(tmp_path / "checkpoint"), checkpoint(2))
    save_checkpoint(tmp_path / "checkpoint", checkpoint(3))  # which also takes the first away
    assert len(list(tmp_path.iterdir())) == 2


def test_the_old_checkpoint_stays_until_the_new_one_is_whole_by_any_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`runs/...` is a relative path: what a killed save left is taken away, what is in use is not."""
    monkeypatch.chdir(tmp_path)
    directory = Path("runs/checkpoint")
    save_checkpoint(directory, checkpoint(1))
    leftover = Path("runs/.checkpoint-killed")
    leftover.mkdir()

    def look(*_: object, **__: object) -> None:
        assert_same(load_checkpoint(directory), checkpoint(1))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", look)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(directory, checkpoint(2))
    assert_same(load_checkpoint(directory), checkpoint(1))
    assert not leftover.exists()


def spoil_weight(directory: Path) -> None:
    """Give a weight another shape."""
    with np.load(directory / "weights.npz") as arrays:
        weights = dict(arrays)
    weights["head.bias"] = np.zeros(5, np.float32)
    np.savez(directory / "weights.npz", **weights)


def drop_weight(directory: Path) -> None:
    """Leave a weight out, and put another in."""
    with np.load(directory / "weights.npz") as arrays:
        weights = dict(arrays)
    weights["tail.bias"] = weights.pop("head.bias")
    np.savez(directory / "weights.npz", **weights)


def double_weight(directory: Path) -> None:
    """Give the weights another type."""
    with np.load(directory / "weights.npz") as arrays:
        weights = {name: weight.astype(np.float64) for name, weight in arrays.items()}
    np.savez(directory / "weights.npz", **weights)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda at: (at / "config.json").unlink(), r"config\.json"),
        (lambda at: (at / "config.json").write_text("{"), r"config\.json"),
        (lambda at: (at / "config.json").write_text("[]"), r"config\.json: expected a JSON object"),
        (lambda at: (at / "metrics.json").write_text('{"title": 1}'), r"metrics\.json"),
        (lambda at: (at / "weights.npz").unlink(), r"weights\.npz"),
        (
            lambda at: (at / "weights.npz").write_bytes(b"PK\x03\x04"),
            r"weights\.npz: .*copy it anew from where it came",
        ),
        (lambda at: (at / "weights.npz").write_bytes(b""), r"weights\.npz"),
        (spoil_weight, r"weights\.npz: head\.bias: expected float32 \(3,\), found float32 \(5,\)"),
        (drop_weight, r"weights missing: head\.bias; weights unknown: tail\.bias"),
        (double_weight, r"embedding\.weight: expected float32 \(3, 2\), found float64 \(3, 2\)"),
    ],
)
def test_a_spoilt_checkpoint_is_refused(
    tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    """The message names the file, what was expected and what was found."""
    save_checkpoint(tmp_path / "checkpoint", checkpoint())
    spoil(tmp_path / "checkpoint")
    with pytest.raises(CheckpointInvalid, match=message):
        load_checkpoint(tmp_path / "checkpoint")


def test_a_checkpoint_that_may_not_be_read_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody should train again for want of a permission. Root may read everything, so it is raised here."""
    save_checkpoint(tmp_path / "checkpoint", checkpoint())

    def refuse(file: Path, **_: object) -> str:
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(CheckpointInvalid, match=r"config\.json: Permission denied; who runs this") as refused:
        load_checkpoint(tmp_path / "checkpoint")
    assert "train it again" not in refused.value.message


def test_a_model_of_tokens_needs_its_tokenizer(tmp_path: Path) -> None:
    """Without it nobody could feed it text again."""
    save_checkpoint(tmp_path / "checkpoint", checkpoint())
    (tmp_path / "checkpoint" / "tokenizer.json").unlink()
    with pytest.raises(ModelFileMissing, match=r"tokenizer\.json"):
        load_checkpoint(tmp_path / "checkpoint")


def test_a_checkpoint_that_is_not_there_says_how_to_make_one(tmp_path: Path) -> None:
    """The first thing a newcomer may type."""
    with pytest.raises(CheckpointInvalid, match="cellstream train"):
        load_checkpoint(tmp_path / "checkpoint")


def test_it_shows_itself() -> None:
    """In a debugger, a name and sizes say more than an address."""
    assert repr(checkpoint()) == "<Checkpoint 'tiny': 1 × 2 gru>"
    assert repr(ByteTokenizer()) == "<ByteTokenizer: 256 bytes>"
