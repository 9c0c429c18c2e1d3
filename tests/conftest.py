"""Models for tests, made once: tiny ones with random weights, written by the real export."""

from __future__ import annotations

from pathlib import Path

import pytest

from cellstream.testing import write_model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with one model, `tiny`: an LSTM over bytes, 2 layers × 16."""
    return write_model(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with several: two versions of `tiny`, a GRU over values, an RNN over 40 characters."""
    models = write_model(tmp_path_factory.mktemp("many"))
    write_model(models, version=2, seed=1)
    write_model(models, name="meter", cell="gru", input="values", seed=2)
    return write_model(models, name="letters", cell="rnn", vocabulary_size=40, seed=3)
