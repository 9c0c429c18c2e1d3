"""The models that are served: for each version its engine and its tokeniser."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from cellstream.engine import Engine
from cellstream.errors import ModelUnknown, SettingsInvalid, VersionUnknown
from cellstream.repository import Manifest
from cellstream.text import Tokenizer

ECHO_MAX = 64
"""Characters of a client's own text that an error repeats."""


@dataclass(frozen=True, eq=False)
class Served:
    """One version of a model, loaded.

    Attributes:
        manifest: What it says of itself.
        manifest_digest: SHA-256 of its manifest.
        card: Its card, Markdown; empty if it has none.
        engine: What steps it.
        tokenizer: From text to tokens and back; None for a model of values.
    """

    manifest: Manifest
    manifest_digest: str
    card: str
    engine: Engine
    tokenizer: Tokenizer | None

    @cached_property
    def name(self) -> str:
        """The model's name."""
        return self.manifest.name

    @cached_property
    def version(self) -> str:
        """The version, as the wire writes it."""
        return str(self.manifest.version)

    def __repr__(self) -> str:
        return f"<Served {self.name}/{self.version}: {self.engine!r}>"


class Catalogue:
    """Finds what a session asks for.

    Args:
        served: Every version of every model.
        default_model: What a session gets that names none; one of them.
    """

    def __init__(self, served: Iterable[Served], default_model: str) -> None:
        self._versions: dict[str, dict[int, Served]] = {}
        for one in served:
            self._versions.setdefault(one.name, {})[one.manifest.version] = one
        self.default_model = default_model

    def __iter__(self) -> Iterator[Served]:
        """All versions, by name, the highest version first."""
        for name in sorted(self._versions):
            yield from (self._versions[name][number] for number in sorted(self._versions[name], reverse=True))

    def find(self, name: str, version: str) -> Served:
        """The version of a model.

        Args:
            name: Empty: the default.
            version: Empty: the highest.

        Raises:
            ModelUnknown: No such model.
            VersionUnknown: The model has no such version.
        """
        name = name or self.default_model
        versions = self._versions.get(name)
        if versions is None:
            name = _shortened(name)
            raise ModelUnknown(
                f"no model {name!r} is served; those that are: {', '.join(sorted(self._versions))}.",
                model=name,
            )
        if not version:
            return versions[max(versions)]
        found = next((served for served in versions.values() if served.version == version), None)
        if found is None:
            version = _shortened(version)
            raise VersionUnknown(
                f"model {name!r} has no version {version!r}; it has: "
                f"{', '.join(map(str, sorted(versions)))}.",
                model=name,
                version=version,
            )
        return found

    def is_default(self, served: Served) -> bool:
        """Whether a session that names no model and no version gets this one."""
        return served is self.find("", "")


def choose_default(names: Sequence[str], default_model: str | None) -> str:
    """What a session gets that names no model: what the settings say, or the only one that there is.

    Args:
        names: All models, at least one.
        default_model: The setting.

    Raises:
        SettingsInvalid: There are several and no setting, or the setting is not among them.
    """
    listed = ", ".join(names)
    if default_model is None and len(names) != 1:
        raise SettingsInvalid(
            f"{len(names)} models are here ({listed}); set default_model to the one that sessions get which "
            "name none."
        )
    if default_model is not None and default_model not in names:
        raise SettingsInvalid(
            f"default_model is {default_model!r}, and the models here are: {listed}. Set it to one of them.",
            setting="default_model",
        )
    return default_model or names[0]


def _shortened(text: str) -> str:
    """What a client sent, as its error repeats it: a status travels in gRPC's metadata, 16 KiB at most."""
    return text if len(text) <= ECHO_MAX else text[:ECHO_MAX] + "…"
