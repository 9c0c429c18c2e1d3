"""A model of BPE tokens, from a text of one's own to text on the wire."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from cellstream import Client
from cellstream.cells.checkpoint import load_checkpoint
from cellstream.cells.stack import FusedStack, load_weights
from cellstream.cells.threads import threads_set
from cellstream.export import export
from cellstream.testing import running_server
from cellstream.text import BpeTokenizer, load_tokenizer
from cellstream.training import train
from cellstream.training.data import Piece
from cellstream.training.measure import bits_per_character

TALE = "Es war einmal ein König 🦊 und eine Königin 🐻. "
CHANGES: dict[str, object] = {
    "data.tokenizer": "bpe",
    "data.vocabulary_size": 270,
    "model.layers": 1,
    "model.hidden_size": 32,
    "model.embedding_size": 16,
    "training.tokens": 20_000,
    "training.batch_rows": 8,
    "training.window": 32,
    "training.precision": "float32",
    "training.threads": 1,
    "training.learning_rate": 0.03,
    "training.evaluations": 1,
    "training.averaging": 0.9,
}


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version that learned the tale by heart, in seconds, without a recipe."""
    folder = tmp_path_factory.mktemp("bpe")
    (folder / "tale.txt").write_text(TALE * 400, encoding="utf-8")
    told = Console(file=io.StringIO())
    with threads_set(1):
        checkpoint = train(
            None,
            text=folder / "tale.txt",
            runs_directory=folder / "runs",
            console=told,
            overrides=CHANGES,
        )
        return export(checkpoint, folder / "models", console=told)


async def test_text_streams_and_is_generated_whole(version: Path) -> None:
    """On a real port: a text is surprising as its tokens are, and no piece ends within a character."""
    tokenizer = load_tokenizer(version / "tokenizer.json")
    assert isinstance(tokenizer, BpeTokenizer)
    text = "Es war einmal ein König 🦊 und ein Wolf 🐺."
    ids = tokenizer.encode(text)
    assert len(ids) < len(text.encode())
    assert len(tokenizer.encode("🐺")) > 1  # the tale has none: its bytes stay apart

    async with running_server(version.parents[1]) as server, Client(server.target) as client:
        async with client.session() as session:
            by_text = await session.predict(text, want="every_step", score=True)
            assert session.position == len(ids)
        async with client.session() as session:
            by_tokens = await session.predict(ids, want="every_step", score=True)
        np.testing.assert_array_equal(by_text.surprise_bits, by_tokens.surprise_bits)
        assert len(by_text.surprise_bits) == len(ids)

        # It goes on with the tale, whose animals take several tokens each.
        pieces = [piece async for piece in client.generate("Es war einmal", max_tokens=120, temperature=0)]
        made = [token for piece in pieces for token in piece.ids]
        assert len(made) == 120
        assert "🦊" in "".join(piece.text for piece in pieces)
        assert all("\ufffd" not in piece.text for piece in pieces[:-1])
        decoder = tokenizer.decoder()
        assert "".join(piece.text for piece in pieces) == decoder.feed(made) + decoder.finish()


def test_its_bits_are_counted_per_character(version: Path) -> None:
    """Bits per token × tokens per character, so that it stands beside models of bytes and characters."""
    checkpoint = load_checkpoint(version.parents[2] / "runs" / "tale" / "checkpoint")
    assert checkpoint.tokenizer is not None
    model = FusedStack(checkpoint.config)
    load_weights(model, checkpoint.weights)
    text = TALE * 19  # some of what was held out
    ids = np.array(checkpoint.tokenizer.encode(text), dtype=np.int64)
    per_token = bits_per_character(model, Piece("tokens", "x" * len(ids), ids))
    assert bits_per_character(model, Piece("text", text, ids)) == pytest.approx(
        per_token * len(ids) / len(text)
    )
    assert checkpoint.record.metrics["heldout_bits_per_character"] < 0.5
    card = " ".join((version / "CARD.md").read_text(encoding="utf-8").split())
    assert "predicts the next BPE token: 1 layers of 32 units" in card
