"""The command line: one module for each command, found by its name and imported when it is used.

So `cellstream health`, asked every few seconds, loads neither ONNX Runtime nor torch, and the bare install
runs every command that a client needs. A command is a function named `command`, read by typer.

Here stands what all commands share: how they are found, and what a person sees when one fails.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any

import typer
from rich.markup import escape
from typer.core import TyperGroup

from cellstream.cli.console import complain
from cellstream.errors import CellstreamError, ConnectionLost, ExtraMissing, SettingsInvalid

FAILED, MISUSED, INTERRUPTED = 1, 2, 130
"""Exit codes beside 0; the last is what a shell has for a program that Ctrl-C ended."""


@dataclass(frozen=True, slots=True)
class _Command:
    """What is known of a command before its module is imported.

    Attributes:
        help: One line, for the list of commands.
        extra: What must be installed beside the bare client; empty: nothing.
    """

    help: str
    extra: str = ""


_COMMANDS = {
    "serve": _Command("Serve models until SIGTERM or Ctrl-C.", "serve"),
    "stream": _Command("Send standard input to a session, and print what the model says of it."),
    "generate": _Command("Let a model go on from a prompt, printed as it is made."),
    "models": _Command("List the models that a server holds."),
    "sessions": _Command("List the sessions of a server, or end one."),
    "health": _Command("Ask whether a server is ready; exit code 0 only if it is."),
    "inspect": _Command("Show a model on disk: card, signature, states, proof.", "serve"),
    "train": _Command("Train a model as a recipe says.", "train"),
    "export": _Command("Export a checkpoint to ONNX, prove it, put it where models are served.", "train"),
}


class _Group(TyperGroup):
    """Imports a command when it is asked for, and says in plain words why one failed."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        names: dict[str, Any] = dict.fromkeys(_COMMANDS)
        self.commands = names  # for lists, and for "did you mean"

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in _COMMANDS:
            return None
        function, settings = _find(cmd_name)
        app = typer.Typer(add_completion=False)
        app.command(
            cmd_name,
            help=_reflow(function.__doc__ or ""),
            short_help=_COMMANDS[cmd_name].help,
            context_settings=settings,
        )(function)
        return typer.main.get_command(app)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            # Who read our output has seen enough, as `head` does. Python would complain once more at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit from None
        except Exception as error:
            # typer's own, which ends the program in its own way, carries an exit code.
            if ctx.params["debug"] or hasattr(error, "exit_code"):
                raise
            complain(*_in_plain_words(ctx.invoked_subcommand, error))
            raise typer.Exit(MISUSED if isinstance(error, SettingsInvalid) else FAILED) from None


def _in_plain_words(command: str, error: Exception) -> tuple[str, str]:
    """What went wrong and what to do, and the reason by which it can be looked up."""
    if isinstance(error, ModuleNotFoundError):
        error = _extra_missing(command, error)
    if isinstance(error, ConnectionLost) and "tls" in error.values:
        return f"{error.message}.", error.reason
    if isinstance(error, ConnectionLost):
        hint = "Is a server there? `cellstream serve` starts one; --help says how to name another."
        return f"{error.message}. {hint}", error.reason
    if isinstance(error, CellstreamError):
        return error.message, error.reason
    if isinstance(error, UnicodeEncodeError):
        return f"an argument is not UTF-8: {error.object!r}.", ""
    if isinstance(error, OSError):
        return str(error), ""
    return f"{type(error).__name__}: {error}. `cellstream --debug {command} ...` shows where.", "INTERNAL"


def _reflow(text: str) -> str:
    """Paragraphs without line ends, for the help's own width to break."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def _find(name: str) -> tuple[Callable[..., None], dict[str, Any]]:
    """The function of a command, and how its arguments are read."""
    try:
        return import_module(f"cellstream.cli.{name}").command, {}
    except ModuleNotFoundError as error:
        return _unavailable(name, error), {"allow_extra_args": True, "ignore_unknown_options": True}


def _unavailable(name: str, error: ModuleNotFoundError) -> Callable[..., None]:
    """Stands in for a command whose very arguments need an extra, so that the list of commands has it."""

    def command() -> None:
        raise error

    command.__doc__ = escape(_extra_missing(name, error).message)
    return command


def _extra_missing(name: str, error: ModuleNotFoundError) -> ExtraMissing:
    return ExtraMissing(
        f"`cellstream {name}` needs {error.name}, which is not installed: "
        f"pip install 'cellstream[{_COMMANDS[name].extra or 'serve'}]'",
        extra=_COMMANDS[name].extra,
    )


app = typer.Typer(
    cls=_Group,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage or settings, 130 stopped by Ctrl-C, 143 by SIGTERM.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cellstream {version('cellstream')}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[
        bool, typer.Option("--debug", help="When a command fails, show the traceback too.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Stateful sequence models, streamed: the server keeps each client's memory between calls."""


def main() -> None:
    """Runs the command that the arguments name, and exits."""
    app(prog_name="cellstream")
