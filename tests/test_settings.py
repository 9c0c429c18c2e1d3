"""A setting comes from where the user thinks it does, and a wrong one is refused before anything starts."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from cellstream.errors import SettingsInvalid
from cellstream.settings import Settings, flag_of, load_settings


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    """A settings file that sets three of them."""
    file = tmp_path / "cellstream.toml"
    file.write_text('port = 1001\nslots_max = 1002\nmodels = "elsewhere"\n')
    return file


def refusal(
    flags: dict[str, object] | None = None, toml: Path | None = None, environ: dict[str, str] | None = None
) -> str:
    """The message with which these sources are refused."""
    with pytest.raises(SettingsInvalid) as refused:
        load_settings(flags or {}, toml, environ or {})
    return refused.value.message


def test_a_flag_wins_over_the_environment_over_the_file_over_the_default(toml: Path) -> None:
    """The nearer to the person who starts the server, the stronger; and each value tells its source."""
    environ = {"CELLSTREAM_PORT": "2001", "CELLSTREAM_SLOTS_MAX": "2002", "PATH": "/bin"}
    settings, sources = load_settings({"port": 3001}, toml, environ)

    assert (settings.port, settings.slots_max, settings.models) == (3001, 2002, Path("elsewhere"))
    assert settings.batch_rows_max == 512
    assert sources["port"] == "--port"
    assert sources["slots_max"] == "CELLSTREAM_SLOTS_MAX"
    assert sources["models"] == str(toml)
    assert sources["batch_rows_max"] == "default"
    assert list(sources) == list(Settings.model_fields)


def test_an_empty_variable_is_not_set() -> None:
    """Compose files write `CELLSTREAM_DEFAULT_MODEL: ${MODEL:-}` and mean: nothing."""
    settings, sources = load_settings({}, None, {"CELLSTREAM_DEFAULT_MODEL": "", "CELLSTREAM_PORT": ""})
    assert (settings.default_model, settings.port) == (None, 50051)
    assert sources["port"] == "default"


def test_settings_made_by_hand_read_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server inside a test or another program must not change with the shell that it runs in."""
    monkeypatch.setenv("CELLSTREAM_PORT", "7")
    assert Settings().port == 50051
    assert load_settings({}, None, {})[0].port == 50051


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("port", "65536", "less than or equal to 65535"),
        ("port", "http", "a valid integer"),
        ("slots_max", "0", "greater than 0"),
        ("slots_max", "1.5", "a valid integer"),
        ("drain_seconds", "-1", "greater than 0"),
        ("session_idle_seconds", "inf", "a finite number"),
        ("step_milliseconds_max", "nan", "a finite number"),
        ("log_level", "loud", "'debug', 'info', 'warning' or 'error'"),
    ],
)
def test_an_impossible_value_is_refused_wherever_it_stands(
    tmp_path: Path, name: str, value: str, expected: str
) -> None:
    """The message names the setting, the value, what was expected and which source to correct."""
    file = tmp_path / "settings.toml"
    file.write_text(f'{name} = "{value}"')
    variable = f"CELLSTREAM_{name.upper()}"
    for message, source in (
        (refusal(flags={name: value}), flag_of(name)),
        (refusal(environ={variable: value}), variable),
        (refusal(toml=file), str(file)),
    ):
        assert message.startswith(f"{name} cannot be '{value}' (from {source}). Expected: {expected}")


def test_an_unknown_name_is_refused_with_the_nearest_one(tmp_path: Path) -> None:
    """A misspelt bound that is silently ignored is a bound that does not hold."""
    file = tmp_path / "settings.toml"
    file.write_text("slot_max = 5")
    assert refusal(toml=file) == f"There is no setting slot_max (from {file}). Did you mean slots_max?"
    assert refusal(environ={"CELLSTREAM_PROT": "1"}).endswith("(from CELLSTREAM_PROT). Did you mean port?")
    assert "cellstream serve --help" in refusal(environ={"CELLSTREAM_XYZZY": "1"})


def test_all_problems_are_told_at_once(toml: Path) -> None:
    """Correcting one line and starting again, five times over, is nobody's idea of a morning."""
    toml.write_text("port = -1\nnonsense = 1\n")
    lines = refusal({"slots_max": "none"}, toml, {"CELLSTREAM_LOG_FORMAT": "xml"}).splitlines()
    assert [line.split(" cannot be")[0].removeprefix("There is no setting ")[:8] for line in lines] == [
        "nonsense",
        "port",
        "slots_ma",
        "log_form",
    ]


def test_a_file_that_is_missing_or_broken_is_refused(tmp_path: Path) -> None:
    """A server that starts on defaults because its file was mistyped does the wrong thing quietly."""
    assert refusal(toml=tmp_path / "missing.toml") == f"There is no settings file {tmp_path}/missing.toml."
    broken = tmp_path / "broken.toml"
    broken.write_text("port = = 1")
    assert "cannot be read" in refusal(toml=broken)
    assert "line 1" in refusal(toml=broken)
    broken.write_bytes(b"\xff\xfe")
    assert "cannot be read" in refusal(toml=broken)


def test_settings_cannot_be_changed_afterwards() -> None:
    """They are read once; a change behind the server's back would hold in some places only."""
    with pytest.raises(ValidationError, match="frozen"):
        Settings().port = 1


def test_every_setting_has_a_description_that_is_a_sentence() -> None:
    """It is the help of its flag and its comment in --show-config: a person decides by it."""
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name


def test_the_client_s_variables_are_left_alone() -> None:
    """A container has both: the server's settings, and what its health check asks it by."""
    environ = {
        "CELLSTREAM_CLIENT_TLS_CA": "ca.pem",
        "CELLSTREAM_CLIENT_TARGET": "x:1",
        "cellstream_client_x": "1",
    }
    settings, sources = load_settings({}, None, environ)
    assert settings == Settings()
    assert set(sources.values()) == {"default"}
    assert "CELLSTREAM_CLIEN" in refusal(environ={"CELLSTREAM_CLIEN": "1"})
