"""`cellstream serve`: every setting a flag, wrong ones refused before anything starts, and a clean end."""

import json
import re
import signal
import socket
import tomllib
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cellstream.settings import Settings, flag_of, load_settings

Run = Callable[..., Any]
Serve = Callable[..., Any]


def test_every_setting_is_a_flag_with_its_description_and_default(run: Run) -> None:
    """They are read off Settings: a setting that is added there is a flag at once."""
    told = " ".join(re.sub(r"[╭╮╰╯│─]", " ", run("serve", "--help").out).split())
    for name, field in Settings.model_fields.items():
        assert f" {flag_of(name)} " in told
        if field.default is not None:
            assert f"[default: {field.default}]" in told


def test_show_config_tells_each_value_with_its_source_and_description(run: Run, tmp_path: Path) -> None:
    """Which of four places a value came from is what one wants to know at three in the morning."""
    (tmp_path / "cellstream.toml").write_text("slots_max = 100\nport = 100\n")
    shown = run("serve", "--show-config", "--json", "--metrics-port", "300", env={"CELLSTREAM_PORT": "200"})
    assert (shown.code, shown.err) == (0, "")
    told = shown.json()[0]
    assert list(told) == list(Settings.model_fields)
    assert {name: told[name]["value"] for name in ("metrics_port", "port", "slots_max", "host")} == {
        "metrics_port": 300,
        "port": 200,
        "slots_max": 100,
        "host": "127.0.0.1",
    }
    assert {name: told[name]["source"] for name in ("metrics_port", "port", "slots_max", "host")} == {
        "metrics_port": "--metrics-port",
        "port": "CELLSTREAM_PORT",
        "slots_max": "cellstream.toml",
        "host": "default",
    }
    assert told["port"]["description"] == Settings.model_fields["port"].description


def test_show_config_is_a_settings_file(run: Run, tmp_path: Path) -> None:
    """`cellstream serve --show-config > cellstream.toml` begins one, every line explained."""
    shown = run("serve", "--show-config", "--port", "77", "--models", 'odd "name"')
    file = tmp_path / "again.toml"
    file.write_text(shown.out)
    assert shown.out.startswith("# no settings file: there is no cellstream.toml in ")
    assert "\nport = 77  # --port\n" in shown.out
    assert load_settings({}, file, {})[0] == Settings(port=77, models=Path('odd "name"'))
    assert tomllib.loads(shown.out)["slots_max"] == 4096


def test_the_file_is_the_one_that_is_named(run: Run, tmp_path: Path) -> None:
    """--config replaces the file of the working directory; they are not mixed."""
    (tmp_path / "cellstream.toml").write_text("port = 100\n")
    (tmp_path / "other.toml").write_text("slots_max = 200\n")
    told = run("serve", "--show-config", "--json", "--config", "other.toml").json()[0]
    assert (told["port"]["value"], told["slots_max"]["value"]) == (50051, 200)
    assert told["slots_max"]["source"] == "other.toml"


def test_a_wrong_setting_is_refused_before_anything_starts(run: Run) -> None:
    """Code 2, as for a wrong flag, whatever place it came from."""
    refused = run("serve", "--slots-max", "0", env={"CELLSTREAM_PROT": "1"})
    assert (refused.code, refused.out) == (2, "")
    assert "slots_max cannot be '0' (from --slots-max). Expected: greater than 0." in refused.err
    assert "There is no setting prot (from CELLSTREAM_PROT). Did you mean port?" in refused.err


def test_no_models_no_server(run: Run) -> None:
    """An empty server that looks healthy would be found out by its users."""
    refused = run("serve", "--models", "nowhere", "--metrics-port", "0", "--port", "0")
    assert refused.code == 1
    assert "nowhere: expected a directory of models" in refused.err


def test_a_setting_that_does_not_fit_the_models_says_where_it_was_set(
    run: Run, many: Path, tmp_path: Path
) -> None:
    """A file in the working directory is easily forgotten."""
    ports = ("--port", "0", "--metrics-port", "0")
    (tmp_path / "cellstream.toml").write_text('default_model = "nobody"\n')
    refused = run("serve", "--models", str(many), *ports)
    assert refused.code == 2
    assert "the models here are: letters, meter, tiny. " in refused.err
    assert "It was set by cellstream.toml." in refused.err
    refused = run(
        "serve", "--models", str(many), "--default-model", "tiny", "--slots-max", str(10**15), *ports
    )
    assert refused.code == 2
    assert "It was set by --slots-max." in refused.err
    (tmp_path / "empty").mkdir()
    refused = run("serve", "--models", "empty", *ports)
    assert refused.code == 2
    assert "empty has no model" in refused.err


def test_a_taken_port_is_refused(run: Run, many: Path) -> None:
    """Both ports, each with the setting to change."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for flag, other in (("--port", "--metrics-port"), ("--metrics-port", "--port")):
            refused = run("serve", "--models", str(many), "--default-model", "tiny", flag, port, other, "0")
            assert refused.code == 1
            assert "(PORT_IN_USE)" in refused.err.splitlines()[-1]
            assert port in refused.err.splitlines()[-1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_it_is_told_to_go_and_exits_with_0(serve: Serve, number: int) -> None:
    """Docker and Kubernetes send SIGTERM, a person Ctrl-C; both mean: drain, then go."""
    served = serve()
    with urllib.request.urlopen(f"http://127.0.0.1:{served.metrics_port}/metrics", timeout=10) as response:
        assert b'cellstream_model_info{is_default="true"' in response.read()
    code, log = served.stop(number)
    assert (code, log[-1]["event"]) == (0, "drained")


def test_the_log_names_events_and_never_what_users_said(serve: Serve, run: Run) -> None:
    """At the finest level, whatever goes wrong."""
    served = serve("--log-level", "debug")
    for model in ("tiny", "letters"):  # the second has no sign for most of it, and refuses
        run("stream", "--session", "my-name", "--model", model, "--target", served.target, given="sEcReT ü\n")
    run("generate", "sEcReT", "--max-tokens", "3", "--target", served.target)
    run("sessions", "my-name", "--close", "--target", served.target)
    _, log = served.stop()
    text = json.dumps(served.log + log)
    assert "serving" in text
    for secret in ("sEcReT", "my-name"):
        assert secret not in text
