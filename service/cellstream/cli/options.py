"""Options that several commands have, each said once."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

if TYPE_CHECKING:
    from cellstream.client import TlsOptions

    Tls: TypeAlias = TlsOptions
else:
    Tls = dict  # the client is imported by the command that runs, and not for --help

CLIENT_PREFIX = "CELLSTREAM_CLIENT_"
"""What the environment's names of these options begin with; a server's settings leave them alone."""

Target: TypeAlias = Annotated[
    str,
    typer.Option(help="Where the server is.", metavar="HOST:PORT", envvar=f"{CLIENT_PREFIX}TARGET"),
]
TARGET = "localhost:50051"

Model: TypeAlias = Annotated[
    str,
    typer.Option(
        help="Model, or model/version; without it the session's own, or the server's default.",
        metavar="MODEL",
        show_default=False,
    ),
]

SessionName: TypeAlias = Annotated[
    str,
    typer.Option(
        "--session",
        help="Go on with the session of this name, or begin it; the server keeps it afterwards.",
        metavar="NAME",
        show_default=False,
    ),
]

AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON, one value a line.")]


_TLS: dict[str, tuple[type, bool | str, str]] = {
    "tls": (bool, False, "Speak TLS, and trust the authorities that gRPC brings along."),
    "tls_ca": (str, "", "PEM file of the authorities that sign the server's certificate; turns on TLS."),
    "tls_cert": (str, "", "PEM file of your own certificate and its chain, for mutual TLS."),
    "tls_key": (str, "", "PEM file of its key, unencrypted."),
    "tls_server_name": (str, "", "Name that the server's certificate must have, if not the target's host."),
}
"""Option to its type, its default and its help."""


def with_tls(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command that takes `tls: Tls` an option, and a variable of the environment, for each entry."""
    signature = inspect.signature(function, eval_str=True)
    own = [parameter for name, parameter in signature.parameters.items() if name != "tls"]

    @functools.wraps(function)
    def command(*args: Any, **kwargs: Any) -> None:
        tls = {name: kwargs.pop(name) for name in _TLS}
        function(*args, tls={name: value for name, value in tls.items() if value}, **kwargs)

    parameters = [*own, *map(_tls_option, _TLS)]
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def _tls_option(name: str) -> inspect.Parameter:
    kind, default, told = _TLS[name]
    option = typer.Option(
        "--" + name.replace("_", "-"),  # a flag without its --no- form
        help=told,
        metavar=None if kind is bool else "NAME" if name == "tls_server_name" else "FILE",
        envvar=CLIENT_PREFIX + name.upper(),
        show_default=False,
        rich_help_panel="TLS",
    )
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option]
    )


def split_model(model: str) -> tuple[str, str]:
    """Name and version of `model/version`; the version is empty if there is none."""
    name, _, version = model.partition("/")
    return name, version
