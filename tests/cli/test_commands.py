"""What all commands share: they are found, they explain themselves, and they fail in a person's words."""

import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import pytest
from typer.testing import CliRunner

from cellstream.cli import app

COMMANDS = ("serve", "stream", "generate", "models", "sessions", "health", "inspect", "train", "export")

Run = Callable[..., Any]


def plain(text: str) -> str:
    """Help without its boxes and line breaks."""
    return " ".join(re.sub(r"[╭╮╰╯│─]", " ", text).split())


def run_code(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in an interpreter that `code` has prepared."""
    program = (
        f"import sys\n{code}\nsys.argv[1:] = {list(arguments)!r}\nfrom cellstream.cli import main\nmain()"
    )
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


def test_help_lists_every_command_and_the_exit_codes(run: Run) -> None:
    """It is the first thing that a new user types."""
    helped = run("--help")
    assert (helped.code, helped.err) == (0, "")
    told = plain(helped.out)
    for command in COMMANDS:
        assert f" {command} " in told
    assert (
        "Exit codes: 0 done, 1 failed, 2 wrong usage or settings, 130 stopped by Ctrl-C, 143 by SIGTERM."
        in told
    )


def test_without_a_command_it_helps(run: Run) -> None:
    """A bare name shows what there is; it is a wrong use all the same, for scripts."""
    bare = run()
    assert bare.code == 2
    assert "Usage: cellstream" in plain(bare.out + bare.err)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    """--help works without a server, a model or a terminal; and every command has answers for programs."""
    helped = CliRunner().invoke(app, [command, "--help"], prog_name="cellstream")
    assert helped.exit_code == 0
    assert f"Usage: cellstream {command}" in plain(helped.output)
    assert "--json" in helped.output


def test_version(run: Run) -> None:
    """The first question of every bug report."""
    assert run("--version").out == f"cellstream {version('cellstream')}\n"


def test_a_wrong_command_or_option_is_code_2_with_the_nearest_one(run: Run) -> None:
    """Scripts tell a typing mistake from a failure by the code, people by the suggestion."""
    command, option = run("stram"), run("stream", "--scor")
    assert (command.code, option.code) == (2, 2)
    assert "Did you mean 'stream'" in plain(command.err)
    assert "No such option: --scor" in plain(option.err)


def test_a_missing_extra_says_what_to_install() -> None:
    """The bare install is a client; who trains or serves with it is told the one command that helps."""
    trained = run_code("sys.modules['torch'] = None", "train", "--text", ".")
    served = run_code("sys.modules['pydantic_settings'] = None", "serve", "--port", "1")
    assert (trained.returncode, served.returncode) == (1, 1)
    assert "needs torch, which is not installed: pip install 'cellstream[train]'" in trained.stderr
    assert "needs pydantic_settings, which is not installed: pip install 'cellstream[serve]'" in served.stderr
    assert "Traceback" not in trained.stderr + served.stderr


def test_the_list_of_commands_does_not_need_the_extras() -> None:
    """`cellstream --help` on the bare install has all commands, and says what is missing for one."""
    bare = "for name in ('pydantic_settings', 'torch', 'onnx', 'onnxruntime'): sys.modules[name] = None"
    listed, helped = run_code(bare, "--help"), run_code(bare, "serve", "--help")
    assert (listed.returncode, helped.returncode) == (0, 0)
    assert all(f" {command} " in plain(listed.stdout) for command in COMMANDS)
    assert "pip install 'cellstream[serve]'" in plain(helped.stdout)


@pytest.mark.parametrize(
    "arguments", [["stream"], ["generate", "hi", "--max-tokens", "1"], ["models"], ["sessions"]]
)
def test_a_client_command_loads_nothing_heavy(server: Any, arguments: list[str]) -> None:
    """`health` runs every few seconds for months; what serves would triple what it costs."""
    code = "import atexit; atexit.register(lambda: print(*sys.modules, file=sys.stderr))"
    ran = run_code(code, *arguments, "--target", server.target)
    assert ran.returncode == 0
    loaded = ran.stderr.split()
    assert "cellstream.client" in loaded
    heavy = {"torch", "onnx", "onnxruntime", "pydantic_settings", "prometheus_client", "structlog"}
    assert heavy.isdisjoint(loaded)


def test_a_failure_is_one_line_with_its_reason(run: Run) -> None:
    """Reason and what to do, on standard error; no traceback, nothing on standard output."""
    failed = run("health", "localhost:1")
    assert (failed.code, failed.out) == (1, "")
    assert failed.err.startswith("Error: ")
    assert failed.err.endswith("(CONNECTION_LOST)\n")
    assert "`cellstream serve` starts one" in failed.err
    assert len(failed.err.splitlines()) == 1


def test_an_argument_that_is_not_utf8_is_named(run: Run) -> None:
    """As a name typed in an old terminal's encoding; the shell hands it on as it is."""
    failed = run("sessions", b"\xff".decode(errors="surrogateescape"))
    assert (failed.code, failed.err) == (1, "Error: an argument is not UTF-8: '\\udcff'.\n")


BROKEN = "import cellstream.client as c; c.Client.models = lambda self: 1 / 0"


def test_what_nobody_foresaw_has_no_traceback_either_unless_asked() -> None:
    """A user gets a line to report, a developer the traceback."""
    shown, debugged = run_code(BROKEN, "models"), run_code(BROKEN, "--debug", "models")
    assert (shown.returncode, debugged.returncode) == (1, 1)
    where = "`cellstream --debug models ...` shows where."
    assert shown.stderr == f"Error: ZeroDivisionError: division by zero. {where} (INTERNAL)\n"
    assert "Traceback" in debugged.stderr
