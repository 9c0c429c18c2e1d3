"""`cellstream serve`: settings from everywhere, then the server until it is told to go.

Each setting is a flag. The flags are read off `Settings`, so a setting is written once, with its default
and its reason. This module therefore needs the `serve` extra to be imported.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic.fields import FieldInfo
from rich.markup import escape

from cellstream.cli import logs
from cellstream.cli.console import console, print_json
from cellstream.errors import SettingsInvalid
from cellstream.settings import PREFIX, Settings, load_settings

_FILE = Path("cellstream.toml")
"""What is read from the working directory unless --config names another."""


def _with_settings(function: Callable[..., None]) -> Callable[..., None]:
    """Add a flag for each setting to a command that takes them as keyword arguments."""
    signature = inspect.signature(function, eval_str=True)
    own = [
        parameter
        for parameter in signature.parameters.values()
        if parameter.kind is not parameter.VAR_KEYWORD
    ]
    flags = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                str | None,  # Settings reads it, as it reads the environment: one check, one wording
                typer.Option(
                    help=_help(field),
                    metavar=_metavar(field.annotation),
                    rich_help_panel="Settings",
                ),
            ],
        )
        for name, field in Settings.model_fields.items()
    ]
    parameters = [*own, *flags]
    function.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return function


def _help(field: FieldInfo) -> str:
    choices = f" One of {', '.join(get_args(field.annotation))}." if _is_choice(field.annotation) else ""
    default = "" if field.default is None else f" [default: {field.default}]"
    return escape(f"{field.description}{choices}{default}")


def _is_choice(kind: Any) -> bool:
    return get_origin(kind) is Literal


def _metavar(kind: Any) -> str:
    # Short, or on 80 columns there is no room for the names of the flags.
    if _is_choice(kind):
        return "CHOICE"
    return {int: "INTEGER", float: "NUMBER", Path: "DIRECTORY", Path | None: "FILE"}.get(kind, "TEXT")


@_with_settings
def command(
    *,
    config: Annotated[
        Path | None,
        typer.Option(
            help=f"TOML file of settings, one `name = value` a line. Without it: {_FILE} in the working "
            "directory, if there is one.",
            dir_okay=False,
        ),
    ] = None,
    show_config: Annotated[
        bool,
        typer.Option(
            "--show-config",
            help="Print each setting with its source, in the form of a settings file; then exit.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print --show-config as JSON.")] = False,
    **given: str | None,
) -> None:
    """Serve the models of a directory, until SIGTERM, SIGHUP or Ctrl-C; then drain, and exit with 0.

    Each setting is a flag, a variable of the environment (CELLSTREAM_SLOTS_MAX for --slots-max) and a line
    of a TOML file (slots_max = 4096); the first of these that has it counts.
    """
    found = _FILE if config is None and _FILE.is_file() else config
    flags = {name: value for name, value in given.items() if value is not None}
    settings, sources = load_settings(flags, found, os.environ)
    if show_config:
        if as_json:
            _print_settings_as_json(settings, sources)
        else:
            _print_settings(settings, sources, found)
        return
    log = logs.configure(settings.log_level, settings.log_format, settings.log_buffer_bytes_max)
    from cellstream.api import serve

    try:
        done = serve(settings, log_lines_dropped=lambda: log.lines_dropped)
    except SettingsInvalid as error:
        # Only here is known where a setting came from; a file in the working directory is easily forgotten.
        if (source := sources.get(str(error.values.get("setting")), "default")) == "default":
            raise
        raise SettingsInvalid(f"{error.message} It was set by {source}.", **error.values) from error
    if not done:
        log.close()
        os._exit(0)  # see `serve`


def _print_settings(settings: Settings, sources: dict[str, str], file: Path | None) -> None:
    out = console()
    told = f"{file} was read" if file else f"no settings file: there is no {_FILE} in {Path.cwd()}"
    out.print(f"# {escape(told)}. A flag comes before {PREFIX}*, that before the file.", style="dim")
    for name, field in Settings.model_fields.items():
        value = getattr(settings, name)
        out.print(f"\n# {escape(field.description or '')}", style="dim", soft_wrap=True)
        line = f"{name} = {json.dumps(str(value) if isinstance(value, Path) else value)}"
        source = sources[name]
        if value is None:
            out.print(f"# {name} is not set", style="dim")
        else:
            style = "dim" if source == "default" else "bold green"
            out.print(f"{escape(line)}  [{style}]# {escape(source)}[/{style}]", soft_wrap=True)


def _print_settings_as_json(settings: Settings, sources: dict[str, str]) -> None:
    values = settings.model_dump(mode="json")
    print_json(
        {
            name: {"value": values[name], "source": sources[name], "description": field.description}
            for name, field in Settings.model_fields.items()
        }
    )
