"""Every bound and address of the server, each with its reason; read once, checked at once, passed as arguments.

A value comes from the first of: a flag, the environment (`CELLSTREAM_*`), a TOML file, the default here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """The server's settings."""

    model_config = SettingsConfigDict(env_prefix="CELLSTREAM_", extra="forbid", frozen=True)

    host: str = Field("127.0.0.1", description="Address that gRPC binds; this machine only, unless told.")
    port: int = Field(
        50051, ge=0, le=65535, description="Port of gRPC; 0: any free one. gRPC's customary port."
    )
    metrics_host: str = Field(
        "127.0.0.1", description="Address that /metrics binds; this machine only, unless told."
    )
    metrics_port: int = Field(
        9464, ge=0, le=65535, description="Port of /metrics; 0: any free one. OpenTelemetry's for Prometheus."
    )
    models: Path = Field(Path("models"), description="Directory of <name>/<version>/ folders.")
    default_model: str | None = Field(
        None, description="Model of sessions that name none; needed where several are served."
    )

    slots_max: PositiveInt = Field(
        4096,
        description="Sessions with a state in memory, for each model version; 16 MiB for a state of 4 KiB.",
    )
    batch_rows_max: PositiveInt = Field(
        512, description="Rows of one call; beyond it a step costs time in proportion and gains nothing."
    )
    step_milliseconds_max: PositiveFloat = Field(
        10.0,
        description="Target for one call, which holds the event loop: health and metrics answer in between.",
    )
    intra_op_threads: PositiveInt = Field(
        1, description="ONNX Runtime's threads; two were 2 to 4 times slower where cores are shared."
    )

    message_bytes_max: PositiveInt = Field(
        4 << 20, description="Bytes of one request message; gRPC's own default."
    )
    message_items_max: PositiveInt = Field(
        4096,
        description="Opens, resets, feeds and closes of one message; bounds the time that reading one takes.",
    )
    feed_tokens_max: PositiveInt = Field(16_384, description="Tokens or frames of one feed.")
    session_id_bytes_max: PositiveInt = Field(128, description="Bytes of a session id; a UUID has 36.")
    streams_max: PositiveInt = Field(4096, description="Streams open at once; each costs about 27 KiB.")
    stream_handles_max: PositiveInt = Field(4096, description="Handles one stream may use at once.")
    stream_queue_tokens_max: PositiveInt = Field(
        65_536, description="Unapplied tokens of one stream; beyond it the stream is not read."
    )
    stream_outbox_bytes_max: PositiveInt = Field(
        4 << 20,
        description="Unsent response bytes of one stream; beyond it the stream is neither read nor stepped.",
    )
    response_bytes_max: PositiveInt = Field(
        1 << 20,
        description="Bytes of one response message, unless one step alone has more; a client takes 4 MiB by default.",
    )

    feed_wait_seconds_max: PositiveFloat = Field(
        30.0, description="From a feed's reading to its first applied token."
    )
    session_idle_seconds: PositiveFloat = Field(3600.0, description="Without a feed, any session ends.")
    tombstone_seconds: PositiveFloat = Field(
        3600.0, description="How long the end of a named session is remembered."
    )
    tombstones_max: PositiveInt = Field(
        10_000, description="How many ends are remembered; about 300 bytes each."
    )
    drain_seconds: PositiveFloat = Field(
        10.0, description="From SIGTERM to exit; Docker and Kubernetes kill after 10 and 30."
    )
    keepalive_seconds: PositiveFloat = Field(
        20.0, description="Silence after which a client is pinged; proxies drop silent connections after 60."
    )
    keepalive_timeout_seconds: PositiveFloat = Field(
        10.0, description="Without an answer to a ping, the connection is gone."
    )
    retry_after_seconds: PositiveFloat = Field(
        1.0, description="What RetryInfo tells a client that was refused for capacity."
    )

    generate_tokens_max: PositiveInt = Field(65_536, description="Tokens of one generation.")
    stop_texts_max: PositiveInt = Field(16, description="Stop texts of one generation.")
    stop_bytes_max: PositiveInt = Field(
        256, description="Bytes of one stop text; so much text may be held back."
    )
    sessions_page_max: PositiveInt = Field(1000, description="Sessions of one page of ListSessions.")

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The least that is logged."
    )
    log_format: Literal["console", "json"] = Field("console", description="For a person, or for a collector.")
