"""Puts a version of a model on disk, whole or not at all."""

from __future__ import annotations

import datetime
import importlib.metadata
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cellstream.cells.checkpoint import Weights, sync
from cellstream.cells.config import StackConfig
from cellstream.errors import SetupError
from cellstream.export.building import HEAD_FILE, SEQUENCE_FILE, STEP_FILE, build
from cellstream.export.forms import output_name
from cellstream.export.graph import GATES_SWITCH
from cellstream.repository import MANIFEST_FILE, Manifest, digest_file, load_version
from cellstream.repository.manifest import (
    MODEL_NAME_PATTERN,
    Architecture,
    File,
    Gate,
    Input,
    Output,
    State,
    WeightsDtype,
)

TOKENIZER_FILE = "tokenizer.json"

Proof = Mapping[str, bool | int | float | str]
"""What a proof found, by name: largest differences, numbers of cases."""

_PACKAGES = ("cellstream", "numpy", "onnx", "onnxruntime", "torch")


def write_version(
    models_directory: Path,
    config: StackConfig,
    weights: Weights,
    *,
    name: str,
    version: int = 1,
    weights_dtype: WeightsDtype = "float32",
    tokenizer_json: str | None = None,
    beside: Mapping[str, bytes] | None = None,
    metrics: Mapping[str, float] | None = None,
    training_data_sha256: str | None = None,
    prove: Callable[[Path], Proof] | None = None,
) -> Path:
    """Write `<models_directory>/<name>/<version>/`, and verify it as a server will.

    Everything is made in a hidden folder, which gets its name at the very end: a server never sees half a
    version. A version that is there is never changed. The same weights give the same graphs and weights, byte
    for byte. PyTorch is not needed, unless `prove` needs it.

    Args:
        models_directory: Where; made if it is not there.
        config: What the weights are the weights of.
        weights: PyTorch's, by the names of `cells.config`.
        name: The model's name.
        version: Its version, from 1.
        weights_dtype: How to store the weights of products.
        tokenizer_json: What the model's tokeniser writes of itself; None: the model has none.
        beside: Further files by name: the card, the report.
        metrics: What it was measured at.
        training_data_sha256: Digest of the data it was trained on; None if it was not trained.
        prove: Called with the folder of the finished files, before that has its name; it may write what it
            found into the card there. What it returns goes into the manifest; if it raises, nothing is
            written. None: no proof.

    Returns:
        The version's folder.

    Raises:
        CheckpointInvalid: The weights are not those of this configuration.
        SetupError: The name is no model's name, or the version is there already.
        RepositoryError: A server would refuse what was written; a subclass says why.
        OSError: The disk is full, or not ours.
    """
    if not re.fullmatch(MODEL_NAME_PATTERN, name) or version < 1:
        raise SetupError(
            f"{name}/{version}: expected a name that begins with a small letter or a digit and goes on with "
            "up to 63 of a-z 0-9 . _ -, and a version from 1."
        )
    target = models_directory / name / str(version)
    _refuse_existing(target)
    graphs = build(config, weights, weights_dtype)
    with _whole_or_not_at_all(target) as staging:
        graphs.write(staging)
        if tokenizer_json is not None:
            (staging / TOKENIZER_FILE).write_text(tokenizer_json, encoding="utf-8")
        for file, contents in (beside or {}).items():
            (staging / file).write_bytes(contents)
        proof = {} if prove is None else dict(prove(staging))
        manifest = Manifest.make(
            name=name,
            version=version,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            **_signature(config),
            **_files(staging),
            weights_dtype=weights_dtype,
            training_data_sha256=training_data_sha256,
            metrics=dict(metrics or {}),
            proof=proof,
            versions=_package_versions(),
        )
        (staging / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
        load_version(staging)
    return target


@contextmanager
def _whole_or_not_at_all(target: Path) -> Iterator[Path]:
    """A hidden folder to fill, which gets its name at the very end; nothing stays of one that fails."""
    name, models_directory = target.parent.name, target.parent.parent
    models_directory.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{name}-{target.name}-", dir=models_directory))
    try:
        staging.chmod(0o755)  # mkdtemp's folder is its maker's alone, and a server often runs as another user
        yield staging
        for path in (*staging.iterdir(), staging):
            sync(path)  # a name that outlives a loss of power must have something behind it
        _refuse_existing(target)  # someone may have been faster
        target.parent.mkdir(exist_ok=True)
        staging.rename(target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    for folder in (target.parent, models_directory):
        sync(folder)  # a failure here is told, and the version stays: it is whole


def _refuse_existing(target: Path) -> None:
    if target.exists():
        raise SetupError(f"{target} is there already, and a version is never changed: choose another.")


def _signature(config: StackConfig) -> dict[str, object]:
    """What the graphs take, give and carry, by the manifest's names."""
    of_layers = (config.layers, config.hidden_size)
    return {
        "architecture": Architecture(
            cell=config.cell,
            layers=config.layers,
            hidden_size=config.hidden_size,
            embedding_size=config.embedding_size,
            parameters=config.parameters,
        ),
        "input": Input(
            name=config.input,
            kind=config.input,
            vocabulary_size=config.vocabulary_size,
            features=config.features,
        ),
        "outputs": (
            Output(
                name=output_name(config),
                kind="log_probabilities" if config.input == "tokens" else "values",
                shape=(config.outputs_size,),
            ),
        ),
        "states": tuple(
            State(name=name, input=name, output=f"{name}_next", shape=of_layers) for name in config.states
        ),
        "gates": tuple(Gate(name=name, shape=of_layers) for name in config.gates),
        "gates_switch": GATES_SWITCH if config.gates else None,
    }


def _files(directory: Path) -> dict[str, object]:
    """What lies in a folder, by the manifest's names, with the digest of every file."""
    paths = sorted(directory.iterdir())
    there = {path.name for path in paths}
    return {
        "step_graph": STEP_FILE,
        "head_graph": HEAD_FILE,
        "sequence_graph": SEQUENCE_FILE if SEQUENCE_FILE in there else None,
        "tokenizer": TOKENIZER_FILE if TOKENIZER_FILE in there else None,
        "files": {path.name: File(sha256=digest_file(path), bytes=path.stat().st_size) for path in paths},
    }


def _package_versions() -> dict[str, str]:
    """The versions of what makes an export, as far as it is installed."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
