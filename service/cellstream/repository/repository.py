"""`models/` on disk: which models there are, and which versions of each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from cellstream.errors import ManifestInvalid, ModelFileMissing, ModelUnknown, VersionUnknown
from cellstream.repository.manifest import MODEL_NAME_PATTERN
from cellstream.repository.version import ModelVersion, load_version

_VERSION_NAME = re.compile(r"[1-9][0-9]{0,8}")


class Repository:
    """The models of one directory, `<name>/<version>/` each; seen once, at construction.

    Only folders are looked at: a recipe or a note that lies beside them is the author's own. A folder that is
    no model, or no version, is left out and named in `skipped`.

    Args:
        models_directory: Where the models are.

    Attributes:
        skipped: Every folder that was left out, and why.

    Raises:
        ModelFileMissing: There is no such directory.
    """

    def __init__(self, models_directory: Path) -> None:
        if not models_directory.is_dir():
            raise ModelFileMissing(f"{models_directory}: expected a directory of models, found none.")
        self._directory = models_directory
        self._versions: dict[str, tuple[int, ...]] = {}
        self.skipped: dict[Path, str] = {}
        for folder in _folders(models_directory):
            if not re.fullmatch(MODEL_NAME_PATTERN, folder.name):
                self.skipped[folder] = (
                    "no model's name: a small letter or digit, then up to 63 of a-z 0-9 . _ -"
                )
            elif versions := self._find_versions(folder):
                self._versions[folder.name] = versions
            else:
                self.skipped[folder] = "no version in it: a folder named 1, 2, and so on"

    def __repr__(self) -> str:
        held = ", ".join(f"{name} ({', '.join(map(str, found))})" for name, found in self._versions.items())
        return f"<Repository {str(self._directory)!r}: {held or 'no models'}>"

    @property
    def names(self) -> tuple[str, ...]:
        """The models' names, sorted."""
        return tuple(self._versions)

    def versions(self, name: str) -> tuple[int, ...]:
        """The versions of a model, lowest first; at least one.

        Raises:
            ModelUnknown: There is no model of that name.
        """
        if name not in self._versions:
            raise ModelUnknown(
                f"{self._directory} has no model {name!r}; it has {', '.join(self._versions) or 'none'}.",
                model=name,
            )
        return self._versions[name]

    def load(self, name: str, version: int | None = None) -> ModelVersion:
        """Read and verify one version of a model.

        Args:
            name: Which model.
            version: Which version; None: the highest.

        Raises:
            ModelUnknown: There is no model of that name.
            VersionUnknown: The model has no such version.
            RepositoryError: It cannot be served; a subclass says why (see `load_version`).
        """
        versions = self.versions(name)
        if version is None:
            version = versions[-1]
        if version not in versions:
            raise VersionUnknown(
                f"model {name!r} has no version {version}; it has {', '.join(map(str, versions))}.",
                model=name,
                version=version,
            )
        loaded = load_version(self._directory / name / str(version))
        manifest = loaded.manifest
        if (manifest.name, manifest.version) != (name, version):
            raise ManifestInvalid(
                f"{loaded.directory}: expected the manifest of {name}/{version}, found that of "
                f"{manifest.name}/{manifest.version}."
            )
        return loaded

    def load_all(self) -> Iterator[ModelVersion]:
        """Read and verify every version of every model, one after the other: by name, then by version.

        Raises:
            RepositoryError: One cannot be served; a subclass says why (see `load_version`).
        """
        for name, versions in self._versions.items():
            for version in versions:
                yield self.load(name, version)

    def _find_versions(self, model: Path) -> tuple[int, ...]:
        found = []
        for folder in _folders(model):
            if _VERSION_NAME.fullmatch(folder.name):
                found.append(int(folder.name))
            else:
                self.skipped[folder] = "no version's name: a whole number from 1, without leading zeros"
        return tuple(sorted(found))


def _folders(directory: Path) -> list[Path]:
    return sorted(entry for entry in directory.iterdir() if entry.is_dir())
