"""Every bound and address of the server, each with its reason: read once, checked at once, then passed on.

A value comes from the first of: a flag, the environment (`CELLSTREAM_*`), a TOML file, the default here.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from cellstream.errors import SettingsInvalid

PREFIX = "CELLSTREAM_"
"""What the environment's names begin with."""

CLIENT_PREFIX = "CELLSTREAM_CLIENT_"
"""What the names of the client's variables begin with; the server leaves them alone."""


class Settings(BaseSettings):
    """The server's settings; one made by hand takes its arguments and the defaults, and reads nothing."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True, allow_inf_nan=False
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments only: `load_settings` reads the rest, which also tells where each value came from."""
        return (init_settings,)

    host: str = Field(
        default="127.0.0.1",
        description="Address that gRPC binds; this machine only, unless told. `::` is IPv6 and IPv4; "
        "`unix:/path` a socket in the file system.",
    )
    port: int = Field(
        default=50051, ge=0, le=65535, description="Port of gRPC; 0: any free one. gRPC's customary port."
    )
    transport: Literal["native", "grpcio"] = Field(
        default="native",
        description="native: our own HTTP/2 on the event loop; grpcio: gRPC's C core, which costs more and "
        "has fewer limits.",
    )
    reuse_port: bool = Field(
        default=False,
        description="Share the port with other servers that do the same (SO_REUSEPORT): several processes of "
        "one service. Off, a second server on one port is refused.",
    )
    tls_cert: Path | None = Field(
        default=None, description="PEM file of the server's certificate and its chain; with it, TLS only."
    )
    tls_key: Path | None = Field(
        default=None,
        description="PEM file of the certificate's key, unencrypted; unset: it is in tls_cert's file.",
    )
    tls_client_ca: Path | None = Field(
        default=None, description="PEM file of the authorities whose clients are let in (mutual TLS)."
    )
    metrics_host: str = Field(
        default="127.0.0.1", description="Address that /metrics binds; this machine only, unless told."
    )
    metrics_port: int = Field(
        default=9464,
        ge=0,
        le=65535,
        description="Port of /metrics; 0: any free one. OpenTelemetry's for Prometheus.",
    )
    metrics_connections_max: PositiveInt = Field(
        default=64,
        description="Connections of the metrics port; beyond it, the one that has asked for nothing longest "
        "is closed. A scraper needs one. Against: connection floods.",
    )
    metrics_request_seconds: PositiveFloat = Field(
        default=10.0,
        description="From a connection's beginning, or a request's first byte, to its end; and again for an "
        "answer to be taken. Against: requests sent, and answers read, a byte at a time (slowloris).",
    )
    metrics_idle_seconds: PositiveFloat = Field(
        default=120.0,
        description="Between two requests of one connection; scrapers ask every 5 to 60 s.",
    )
    metrics_head_bytes_max: PositiveInt = Field(
        default=16_384,
        description="Bytes of a request's line and headers; Node's default. Against: headers without end.",
    )
    models: Path = Field(default=Path("models"), description="Directory of <name>/<version>/ folders.")
    default_model: str | None = Field(
        default=None, description="Model of sessions that name none; needed where several are served."
    )

    slots_max: PositiveInt = Field(
        default=4096,
        description="Sessions with a state in memory, for each model version; 16 MiB for a state of 4 KiB.",
    )
    batch_rows_max: PositiveInt = Field(
        default=512,
        description="Rows of one call; beyond it a step costs time in proportion and gains nothing.",
    )
    step_milliseconds_max: PositiveFloat = Field(
        default=10.0,
        description="Target for one call, which holds the event loop: health and metrics answer in between.",
    )
    intra_op_threads: PositiveInt = Field(
        default=1, description="ONNX Runtime's threads; two were 2 to 4 times slower where cores are shared."
    )
    numerics: Literal["exact", "fast"] = Field(
        default="exact",
        description="exact: each session's answers are, bit for bit, what it gets alone; "
        "fast: to 1e-5, and long feeds of one session ran 1.8 to 6 times as fast, of eight 1.2 to 2.",
    )

    message_bytes_max: PositiveInt = Field(
        default=4 << 20, description="Bytes of one request message; gRPC's own default."
    )
    message_items_max: PositiveInt = Field(
        default=4096,
        description="Opens, resets, feeds and closes of one message; bounds the time that reading one takes.",
    )
    feed_tokens_max: PositiveInt = Field(default=16_384, description="Tokens or frames of one feed.")
    session_id_bytes_max: PositiveInt = Field(
        default=128, description="Bytes of a session id; a UUID has 36."
    )
    streams_max: PositiveInt = Field(
        default=16_384, description="Streams open at once; each costs about 2 KiB, behind grpcio 30 KiB."
    )
    stream_handles_max: PositiveInt = Field(default=4096, description="Handles one stream may use at once.")
    stream_closed_handles_max: PositiveInt = Field(
        default=64,
        description="Handles of one stream of which it is remembered why they are closed, for feeds that are "
        "under way; about 1 KiB each. Others hear HANDLE_UNKNOWN.",
    )
    stream_outbox_bytes_max: PositiveInt = Field(
        default=4 << 20,
        description="Unsent response bytes of one stream; beyond it the stream is neither read nor stepped.",
    )
    buffered_bytes_max: PositiveInt = Field(
        default=128 << 20,
        description="Bytes of large messages that are not whole or not applied, and again of unsent "
        "responses, over all streams. Beyond it, of messages the oldest goes on, and of responses each "
        "stream has its fair share.",
    )
    generation_outbox_bytes_max: PositiveInt = Field(
        default=65_536,
        description="Unsent bytes of one generation, some thousand tokens; beyond it no more is made. "
        "Against: generations that nobody reads.",
    )
    response_bytes_max: PositiveInt = Field(
        default=1 << 20,
        description="Bytes of one response message, unless one step has more; clients take 4 MiB by default.",
    )

    feed_wait_seconds_max: PositiveFloat = Field(
        default=30.0, description="From a feed's reading to its first applied token."
    )
    session_idle_seconds: PositiveFloat = Field(
        default=3600.0, description="Without a feed, any session ends."
    )
    tombstone_seconds: PositiveFloat = Field(
        default=3600.0, description="How long the end of a named session is remembered."
    )
    tombstones_max: PositiveInt = Field(
        default=10_000, description="How many ends are remembered; about 300 bytes each."
    )
    drain_seconds: PositiveFloat = Field(
        default=10.0, description="From SIGTERM to exit; Docker and Kubernetes kill after 10 and 30."
    )
    keepalive_seconds: PositiveFloat = Field(
        default=20.0,
        description="Silence after which a client is pinged; proxies drop silent connections after 60.",
    )
    keepalive_timeout_seconds: PositiveFloat = Field(
        default=10.0, description="Without an answer to a ping, the connection is gone."
    )
    retry_after_seconds: PositiveFloat = Field(
        default=1.0, description="What RetryInfo tells a client that was refused for capacity."
    )

    # The limits of a connection, in the native transport. Each names the attack that it stands against.
    connections_max: PositiveInt = Field(
        default=16_384,
        description="Connections open at once, each a file descriptor. Against: connection floods.",
    )
    connection_streams_max: PositiveInt = Field(
        default=32_768,
        description="Streams of one connection (MAX_CONCURRENT_STREAMS). More than streams_max, because gRPC "
        "clients wait in silence at this one, and are refused with a reason at that one.",
    )
    calls_max: PositiveInt = Field(
        default=24_576,
        description="Calls open at once, of all kinds, about 1.5 KiB each; more than streams_max, "
        "unstarted_calls_max and watches_max. Beyond it a connection has one. Against: answers that nobody "
        "reads (windows of 0, CVE-2019-9517).",
    )
    connection_turn_frames_max: PositiveInt = Field(
        default=512,
        description="Frames read from one connection before the others have their turn, within a quarter of "
        "step_milliseconds_max; header blocks count one for each 64 bytes, unpacked messages for each KiB. "
        "Against: one client starving all.",
    )
    stream_window_bytes: int = Field(
        default=65_536,
        ge=1024,
        le=(1 << 31) - 1,
        description="Bytes of one stream that are read and not applied, one message excepted; beyond it the "
        "stream is not read. HTTP/2's window, its default. Against: clients that send and never wait.",
    )
    header_list_bytes_max: PositiveInt = Field(
        default=16_384,
        description="Bytes of a call's decoded headers, HTTP/2's count; beyond it the call is refused, "
        "beyond four times as many the connection. Against: header bombs (HPACK bombs, CVE-2016-6581).",
    )
    header_block_bytes_max: PositiveInt = Field(
        default=32_768,
        description="Bytes of a compressed header block with its CONTINUATION frames. Against: CONTINUATION "
        "floods (CVE-2024-27316).",
    )
    continuations_max: PositiveInt = Field(
        default=8,
        description="CONTINUATION frames of one header block; nghttp2's default. The largest block fits into "
        "two. Against: CONTINUATION floods of short frames.",
    )
    resets_burst: PositiveInt = Field(
        default=1000,
        description="Streams of a connection that end early at once, whoever resets them, before it is told "
        "to calm down; nghttp2's default. Against: rapid reset (CVE-2023-44487) and MadeYouReset "
        "(CVE-2025-8671).",
    )
    resets_per_second: PositiveFloat = Field(
        default=33.0, description="Resets that a connection regains each second; nghttp2's default."
    )
    control_frames_burst: PositiveInt = Field(
        default=1000,
        description="SETTINGS, PRIORITY, empty DATA and other frames without content of a connection at "
        "once, before it is told to calm down. Against: SETTINGS and empty-frame floods (CVE-2019-9515, "
        "CVE-2019-9518).",
    )
    control_frames_per_second: PositiveFloat = Field(
        default=100.0, description="Such frames that a connection regains each second."
    )
    ping_seconds_min: PositiveFloat = Field(
        default=5.0,
        description="Least time between two PINGs of a client on a connection to which nothing was sent "
        "meanwhile: the least keepalive interval that a client may have. Against: PING floods "
        "(CVE-2019-9512).",
    )
    ping_strikes_max: PositiveInt = Field(
        default=2, description="PINGs that come too soon before the connection is ended; gRPC's default."
    )
    handshake_seconds: PositiveFloat = Field(
        default=5.0,
        description="From a connection's beginning to its end of TLS, and again to HTTP/2's preface. "
        "Against: connections that say nothing (slowloris).",
    )
    handshakes_turn_max: PositiveInt = Field(
        default=4,
        description="TLS handshakes before all others have their turn, about 1 ms each. Against: connections "
        "that make the server do public-key operations.",
    )
    first_message_seconds: PositiveFloat = Field(
        default=30.0,
        description="From a call's headers to its first message; half of it for a message to be whole while "
        "others wait for its room. Against: calls of headers alone, messages that never end.",
    )
    unstarted_calls_max: PositiveInt = Field(
        default=4096,
        description="Calls, over all connections, whose first message has not come; beyond it the one that "
        "waited longest is ended. Against: calls of headers alone.",
    )
    stall_seconds_max: PositiveFloat = Field(
        default=30.0,
        description="How long a client may leave what we have to send unread, without any progress. Against: "
        "windows that never open (CVE-2019-9511, -9517).",
    )
    connection_bytes_max: PositiveInt = Field(
        default=16 << 20,
        description="Bytes of unfinished messages of one connection, beyond which only the oldest goes on; "
        "and of its unsent answers, beyond which calls of one request are refused.",
    )
    watches_max: PositiveInt = Field(
        default=1024,
        description="Calls of health Watch, and again of reflection, open at once. Against: calls that "
        "cost their client nothing, without number.",
    )

    generate_tokens_max: PositiveInt = Field(default=65_536, description="Tokens of one generation.")
    stop_texts_max: PositiveInt = Field(default=16, description="Stop texts of one generation.")
    stop_bytes_max: PositiveInt = Field(
        default=256, description="Bytes of one stop text; so much text may be held back."
    )
    sessions_page_max: PositiveInt = Field(default=1000, description="Sessions of one page of ListSessions.")

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least that is logged."
    )
    log_format: Literal["console", "json"] = Field(
        default="console", description="For a person, or for a collector."
    )
    log_buffer_bytes_max: PositiveInt = Field(
        default=1 << 20,
        description="Bytes of log lines that standard error has not taken, some thousand lines; beyond it "
        "lines are dropped and counted. Against: a reader of the log that stops reading.",
    )


def load_settings(
    flags: Mapping[str, object], toml: Path | None, environ: Mapping[str, str]
) -> tuple[Settings, dict[str, str]]:
    """Read every source once, and check all of it at once.

    Args:
        flags: Settings given on the command line, by name.
        toml: A file of `name = value` lines, if there is one.
        environ: The environment; of it, what begins with `CELLSTREAM_`, but not with `CELLSTREAM_CLIENT_`,
            and is not empty.

    Returns:
        The settings, and for each name where its value came from: `--port`, `CELLSTREAM_PORT`, the file,
        or `default`.

    Raises:
        SettingsInvalid: An unknown name or an impossible value, anywhere; the message names all of them.
    """
    layers: tuple[tuple[Callable[[str], str], Mapping[str, Any]], ...] = (
        (lambda name: str(toml), _read_file(toml) if toml else {}),
        (lambda name: PREFIX + name.upper(), _read_environment(environ)),
        (flag_of, flags),
    )
    values: dict[str, Any] = {}
    sources = dict.fromkeys(Settings.model_fields, "default")
    problems = []
    for where, layer in layers:  # the last one wins
        for name, value in layer.items():
            if name not in Settings.model_fields:
                problems.append(_unknown(name, where(name)))
            else:
                values[name], sources[name] = value, where(name)
    try:
        settings = Settings(**values)
    except ValidationError as error:
        problems += [_impossible(detail, sources) for detail in error.errors()]
    if problems:
        raise SettingsInvalid("\n".join(problems))
    return settings, sources


def flag_of(name: str) -> str:
    """The flag of a setting."""
    return "--" + name.replace("_", "-")


def _read_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    ours = {
        name.lower(): value
        for name, value in environ.items()
        if name.upper().startswith(PREFIX) and not name.upper().startswith(CLIENT_PREFIX) and value
    }
    named = {name.removeprefix(PREFIX.lower()): value for name, value in ours.items()}
    source = EnvSettingsSource(Settings)
    source.env_vars = ours  # the caller's, not the process's
    return named | source()  # the source leaves out names that it does not know; we refuse them


def _read_file(toml: Path) -> dict[str, Any]:
    try:
        if not toml.is_file():
            raise SettingsInvalid(f"There is no settings file {toml}.", file=toml)
        return TomlConfigSettingsSource(Settings, toml)()
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsInvalid(f"The settings file {toml} cannot be read: {error}.", file=toml) from error


def _unknown(name: str, where: str) -> str:
    close = get_close_matches(name, Settings.model_fields, n=1)
    meant = f" Did you mean {close[0]}?" if close else " `cellstream serve --help` lists all."
    return f"There is no setting {name} (from {where}).{meant}"


def _impossible(detail: Mapping[str, Any], sources: Mapping[str, str]) -> str:
    name = str(detail["loc"][0])
    expected = detail["msg"].removeprefix("Input should be ")
    return f"{name} cannot be {detail['input']!r} (from {sources[name]}). Expected: {expected}."
