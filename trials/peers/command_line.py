"""curl, nghttp and h2load: clients that know HTTP/2 and nothing of gRPC. Their bodies are framed by hand."""

from __future__ import annotations

import base64
import re
import subprocess
import urllib.parse
from functools import partial
from pathlib import Path

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from cellstream.v1 import model_pb2
from cellstream.v1 import prediction_pb2 as pb
from trials.oracle import FRAMES
from trials.peers import contract
from trials.peers.contract import SECONDS, Peer, Security, Site
from trials.peers.wire import decoded_details, framed, messages_in, reason_in, results_in, trailers_in

_DEADLINE_EXCEEDED = 4
_EMPTY = Empty()
"""The health of the whole server is asked for by no bytes at all."""
_HEADERS = {"content-type": "application/grpc", "te": "trailers"}
_GZIP = {"grpc-encoding": "gzip", "grpc-accept-encoding": "gzip"}
_DEADLINE = {"grpc-timeout": f"{int(contract.DEADLINE_SECONDS * 1000)}m"}
_METADATA = {
    contract.METADATA_TEXT[0]: contract.METADATA_TEXT[1],
    contract.METADATA_BYTES[0]: base64.b64encode(contract.METADATA_BYTES[1]).decode(),
}
_LACKS_CANCEL = "it ends with its connection only"


def _url(site: Site, security: Security, path: str) -> str:
    return f"{'http' if security == 'plain' else 'https'}://{site.endpoints[security].target}{path}"


def _body(site: Site, *messages: Message, packed: bool = False) -> Path:
    path = site.scratch / "body"
    path.write_bytes(b"".join(framed(message, packed=packed) for message in messages))
    return path


def _header_flags(flag: str, headers: dict[str, str]) -> list[str]:
    return [word for name, value in headers.items() for word in (flag, f"{name}: {value}")]


def _run(command: list[str]) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run(command, capture_output=True, timeout=2 * SECONDS, check=False)
    assert done.returncode == 0, f"{command[0]} exited {done.returncode}: {done.stderr.decode()[-500:]}"
    return done


def _check_metadata(trailers: dict[str, str]) -> None:
    contract.check_unknown_model(
        int(trailers["grpc-status"]),
        urllib.parse.unquote(trailers["grpc-message"]),
        reason_in(decoded_details(trailers["grpc-status-details-bin"])),
    )


# ------------------------------------------------------------------------------------------------- curl


def _curl_command(site: Site, security: Security, path: str, headers: dict[str, str]) -> list[str]:
    files = site.certificates
    how = {
        "plain": ["--http2-prior-knowledge"],
        "TLS": ["--http2", "--cacert", str(files.authority)],
        "mutual TLS": [
            *("--http2", "--cacert", str(files.authority)),
            *("--cert", str(files.client_cert), "--key", str(files.client_key)),
        ],
    }[security]
    flags = ["--silent", "--show-error", "--no-buffer", "--max-time", str(SECONDS), "--request", "POST"]
    told = ["--dump-header", str(site.scratch / "headers")]
    return [
        "curl",
        *how,
        *flags,
        *told,
        *_header_flags("--header", _HEADERS | headers),
        _url(site, security, path),
    ]


def _curl(
    site: Site,
    path: str,
    *messages: Message,
    security: Security = "plain",
    packed: bool = False,
    headers: dict[str, str] | None = None,
) -> tuple[bytes, dict[str, str]]:
    """Send the messages as one body; return the response's body, and its headers with its trailers."""
    body = _body(site, *messages, packed=packed)
    command = _curl_command(site, security, path, headers or {})
    done = _run([*command, "--data-binary", f"@{body}"])
    return done.stdout, trailers_in((site.scratch / "headers").read_text().splitlines())


def _curl_whole(site: Site, *, security: Security = "plain", packed: bool = False) -> None:
    headers = _GZIP if packed else {}
    body, trailers = _curl(
        site, contract.PREDICT, *contract.conversation(), security=security, packed=packed, headers=headers
    )
    assert trailers["grpc-status"] == "0", trailers
    contract.check_answers(site, results_in(body))


def _curl_stream(site: Site) -> None:
    """A stream of responses: this curl holds the first piece of a body back until the next one comes."""
    body, trailers = _curl(site, contract.GENERATE, contract.generation())
    assert trailers["grpc-status"] == "0", trailers
    _check_generated(site, body)


def _check_generated(site: Site, body: bytes) -> None:
    pieces = [pb.GenerateResponse.FromString(message) for message in messages_in(body)]
    assert len(pieces) > 1, "it came at once, not as a stream"
    assert bytes(token for piece in pieces for token in piece.ids) == site.generated, pieces


def _curl_deadline(site: Site) -> None:
    """Curl only carries the header: it is the server that ends the call."""
    _, trailers = _curl(site, contract.WATCH, _EMPTY, headers=_DEADLINE)
    assert int(trailers["grpc-status"]) == _DEADLINE_EXCEEDED, trailers


def _curl_metadata(site: Site) -> None:
    asked = model_pb2.GetModelRequest(name=contract.UNKNOWN_MODEL)
    _, trailers = _curl(site, contract.GET_MODEL, asked, headers=_METADATA)
    _check_metadata(trailers)


def _curl_large(site: Site) -> None:
    body, trailers = _curl(site, contract.PREDICT, contract.large_request())
    assert trailers["grpc-status"] == "0", trailers
    contract.check_large(results_in(body))


# ----------------------------------------------------------------------------------------------- nghttp


def _nghttp(
    site: Site,
    path: str,
    *messages: Message,
    security: Security = "plain",
    packed: bool = False,
    headers: dict[str, str] | None = None,
    verbose: bool = False,
    times: int = 1,
) -> bytes:
    """Send the messages as one body; return the response's body, or with `verbose` the frames as text."""
    files = site.certificates
    shown = (
        ["--cert", str(files.client_cert), "--key", str(files.client_key)] if security == "mutual TLS" else []
    )
    what = ["--verbose", "--null-out"] if verbose else []
    body = _body(site, *messages, packed=packed)
    sent = _header_flags("--header", {":method": "POST", **_HEADERS, **(headers or {})})
    return _run(
        ["nghttp", *what, *shown, *sent, f"--multiply={times}", f"--data={body}", _url(site, security, path)]
    ).stdout


def _nghttp_trailers(text: bytes) -> dict[str, str]:
    """What the frames tell of received headers: lines `[time] recv (stream_id=13) name: value`."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text.decode())
    return trailers_in(re.findall(r"recv \(stream_id=\d+(?:, sensitive)?\) (.*)", plain))


def _nghttp_whole(site: Site, *, security: Security = "plain", packed: bool = False) -> None:
    headers = _GZIP if packed else {}
    body = _nghttp(
        site, contract.PREDICT, *contract.conversation(), security=security, packed=packed, headers=headers
    )
    contract.check_answers(site, results_in(body))


def _nghttp_stream(site: Site) -> None:
    """Several streams of one connection; their frames may be mixed, so only the statuses are counted here."""
    text = _nghttp(site, contract.PREDICT, *contract.conversation(), verbose=True, times=5).decode()
    assert len(re.findall(r"grpc-status: 0", text)) == 5, text[-2000:]
    _nghttp_whole(site)


def _nghttp_deadline(site: Site) -> None:
    text = _nghttp(site, contract.WATCH, _EMPTY, headers=_DEADLINE, verbose=True)
    assert int(_nghttp_trailers(text)["grpc-status"]) == _DEADLINE_EXCEEDED


def _nghttp_metadata(site: Site) -> None:
    asked = model_pb2.GetModelRequest(name=contract.UNKNOWN_MODEL)
    _check_metadata(
        _nghttp_trailers(_nghttp(site, contract.GET_MODEL, asked, headers=_METADATA, verbose=True))
    )


def _nghttp_large(site: Site) -> None:
    contract.check_large(results_in(_nghttp(site, contract.PREDICT, contract.large_request())))


# ----------------------------------------------------------------------------------------------- h2load

_CALLS = 200
_CLIENTS = 5


def _h2load(
    site: Site,
    message: Message,
    tokens: int,
    *,
    path: str = contract.PREDICT,
    security: Security = "plain",
    packed: bool = False,
    headers: dict[str, str] | None = None,
    calls: int = _CALLS,
) -> None:
    """Make many calls; h2load shows no answer, so the server must have absorbed so many tokens of each."""
    server = site.endpoints[security].server
    before = server.metrics()["cellstream_tokens_total"]
    sent = _header_flags("--header", _HEADERS | (headers or {}))
    done = _run(
        [
            *(
                "h2load",
                f"--requests={calls}",
                f"--clients={min(_CLIENTS, calls)}",
                "--max-concurrent-streams=8",
            ),
            *(*sent, f"--data={_body(site, message, packed=packed)}", _url(site, security, path)),
        ]
    )
    said = done.stdout.decode()
    assert f"{calls} succeeded, 0 failed, 0 errored, 0 timeout" in said, said
    assert f"status codes: {calls} 2xx" in said, said
    assert server.metrics()["cellstream_tokens_total"] - before == calls * tokens


def _tokens() -> int:
    return sum(len(text.encode()) for text in contract.CONVERSATION)


def _h2load_whole(
    site: Site,
    *,
    security: Security = "plain",
    packed: bool = False,
    headers: dict[str, str] | None = None,
) -> None:
    headers = {**(_GZIP if packed else {}), **(headers or {})}
    _h2load(site, contract.joined(), _tokens(), security=security, packed=packed, headers=headers)


def _h2load_large(site: Site) -> None:
    _h2load(site, contract.large_request(), FRAMES, calls=2)


def _h2load_deadline(site: Site) -> None:
    """Watches that would last for ever: the server ends each at its deadline, or h2load would not end."""
    _h2load(site, _EMPTY, 0, path=contract.WATCH, headers=_DEADLINE, calls=_CLIENTS)


# ------------------------------------------------------------------------------------------------ peers


def _version(program: str, site: Site) -> str:
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"\d+\.\d+\.\d+", said)
    return found.group() if found else "?"


PEERS = (
    Peer(
        "curl",
        partial(_version, "curl"),
        {
            "stream": _curl_stream,
            "half-close": _curl_whole,
            "deadline": _curl_deadline,
            "metadata": _curl_metadata,
            "gzip": partial(_curl_whole, packed=True),
            "TLS": partial(_curl_whole, security="TLS"),
            "mutual TLS": partial(_curl_whole, security="mutual TLS"),
            "3 MB message": _curl_large,
        },
        {"cancel": _LACKS_CANCEL},
    ),
    Peer(
        "nghttp",
        partial(_version, "nghttp"),
        {
            "stream": _nghttp_stream,
            "half-close": _nghttp_whole,
            "deadline": _nghttp_deadline,
            "metadata": _nghttp_metadata,
            "gzip": partial(_nghttp_whole, packed=True),
            "TLS": partial(_nghttp_whole, security="TLS"),
            "mutual TLS": partial(_nghttp_whole, security="mutual TLS"),
            "3 MB message": _nghttp_large,
        },
        {"cancel": _LACKS_CANCEL},
    ),
    Peer(
        "h2load",
        partial(_version, "h2load"),
        {
            "stream": _h2load_whole,
            "half-close": _h2load_whole,
            "deadline": _h2load_deadline,
            "metadata": partial(_h2load_whole, headers=_METADATA),
            "gzip": partial(_h2load_whole, packed=True),
            "TLS": partial(_h2load_whole, security="TLS"),
            "3 MB message": _h2load_large,
        },
        {"cancel": _LACKS_CANCEL, "mutual TLS": "it has no flag for a certificate of its own"},
    ),
)
