"""Several models in one directory: the highest version by default, any by name, no silence about the rest."""

from __future__ import annotations

import shutil

import pytest

from cellstream.errors import ManifestInvalid, ModelFileMissing, ModelUnknown, VersionUnknown
from cellstream.repository import Repository
from cellstream.testing import write_model


def test_highest_version_is_the_default(tmp_path) -> None:
    """Numbers, not words: 10 is above 9."""
    for version in (9, 10, 1):
        write_model(tmp_path, version=version, seed=version)
    repository = Repository(tmp_path)
    assert repository.versions("tiny") == (1, 9, 10)
    assert repository.load("tiny").manifest.version == 10
    assert repository.load("tiny", 9).manifest.version == 9


def test_several_models_are_served_at_once(many) -> None:
    """Each with its versions; all of them are read in an order that does not change."""
    repository = Repository(many)
    assert repository.names == ("letters", "meter", "tiny")
    assert [(one.manifest.name, one.manifest.version) for one in repository.load_all()] == [
        ("letters", 1),
        ("meter", 1),
        ("tiny", 1),
        ("tiny", 2),
    ]
    assert repository.load("meter").manifest.input.features == 3
    assert repr(repository) == f"<Repository {str(many)!r}: letters (1), meter (1), tiny (1, 2)>"


def test_unknown_model_is_told_with_those_there_are(many) -> None:
    """A misspelt name is mended from the message."""
    with pytest.raises(ModelUnknown, match=r"no model 'tinny'; it has letters, meter, tiny"):
        Repository(many).load("tinny")


def test_unknown_version_is_told_with_those_there_are(many) -> None:
    """The same for a version."""
    with pytest.raises(VersionUnknown, match="'tiny' has no version 3; it has 1, 2"):
        Repository(many).load("tiny", 3)


def test_directory_that_is_not_there_is_told(tmp_path) -> None:
    """A misspelt path is not an empty repository."""
    with pytest.raises(ModelFileMissing, match="nowhere: expected a directory of models"):
        Repository(tmp_path / "nowhere")


def test_empty_directory_has_no_models(tmp_path) -> None:
    """Whether a server can do without is not for the repository to say."""
    repository = Repository(tmp_path)
    assert repository.names == ()
    assert list(repository.load_all()) == []
    assert repr(repository).endswith("no models>")


def test_folders_that_are_no_models_are_named(models) -> None:
    """Nothing is left out in silence; notes and recipes beside the folders are their author's own."""
    (models / "README.md").write_text("ours")
    (models / "tiny" / "recipe.toml").write_text("ours")
    for junk in ("Old Models", ".staging", "empty", "tiny/02", "tiny/latest", "tiny/0"):
        (models / junk).mkdir()
    repository = Repository(models)
    assert repository.names == ("tiny",)
    assert repository.versions("tiny") == (1,)
    assert {str(path.relative_to(models)): why.split(":")[0] for path, why in repository.skipped.items()} == {
        ".staging": "no model's name",
        "Old Models": "no model's name",
        "empty": "no version in it",
        "tiny/0": "no version's name",
        "tiny/02": "no version's name",
        "tiny/latest": "no version's name",
    }


@pytest.mark.parametrize("place", ["tiny/2", "teeny/1"])
def test_version_in_anothers_place_is_refused(models, place) -> None:
    """A folder that was copied and renamed would be served under a name that its manifest denies."""
    shutil.copytree(models / "tiny" / "1", models / place)
    name, version = place.split("/")
    with pytest.raises(ManifestInvalid, match=f"expected the manifest of {place}, found that of tiny/1"):
        Repository(models).load(name, int(version))


def test_spoilt_version_does_not_hide_the_others(many, tmp_path) -> None:
    """Who asks for another version by name gets it; who asks for all is told."""
    models = shutil.copytree(many, tmp_path / "copy")
    (models / "tiny" / "2" / "weights.bin").unlink()
    repository = Repository(models)
    assert repository.load("tiny", 1).manifest.version == 1
    with pytest.raises(ModelFileMissing, match=r"tiny/2/weights\.bin"):
        list(repository.load_all())
