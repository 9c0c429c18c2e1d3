"""@grpc/grpc-js under Node: `client.mjs` does one thing and tells what happened."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from cellstream.v1 import prediction_pb2 as pb
from trials.peers import contract
from trials.peers.contract import SECONDS, Peer, Security, Site
from trials.peers.wire import reason_in, results_of

_CLIENT = Path(__file__).with_name("client.mjs")
_SESSION = "cancelled by grpc-js"
_DEADLINE_EXCEEDED, _CANCELLED = 4, 1


def _modules(site: Site) -> Path:
    return site.tools / "js" / "node_modules"


def _node(
    site: Site, security: Security = "plain", requests: Sequence[pb.PredictRequest] = (), **asked: Any
) -> dict[str, Any]:
    """Run the client once, and return what it told."""
    files = site.certificates
    asked = {
        "modules": str(_modules(site)),
        "protos": str(site.protos),
        "target": site.endpoints[security].target,
        "seconds": SECONDS,
        "requests": [json_format.MessageToDict(request) for request in requests],
        **asked,
    }
    if security != "plain":
        asked["authority"] = str(files.authority)
    if security == "mutual TLS":
        asked |= {"cert": str(files.client_cert), "key": str(files.client_key)}
    done = subprocess.run(
        ["node", str(_CLIENT)],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=2 * SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _stream(site: Site, *, security: Security = "plain", gzip: bool = False) -> None:
    told = _node(site, security, contract.conversation(), pingPong=True, gzip=gzip)
    assert told["code"] == 0, told
    contract.check_answers(site, results_of(told))


def _half_close(site: Site) -> None:
    told = _node(site, requests=contract.conversation(), halfClose=True)
    assert told["code"] == 0, told
    contract.check_answers(site, results_of(told))


def _cancel(site: Site) -> None:
    told = _node(site, requests=[contract.long_work(_SESSION)], cancel=True)
    assert told["code"] == _CANCELLED, told
    contract.check_no_stream_stays(site.endpoints["plain"].server)
    attach = pb.PredictRequest(opens=[contract.opening(_SESSION)])
    told = _node(site, requests=[attach], halfClose=True)
    contract.check_work_was_broken_off(int(told["opened"][0]["position"]))


def _deadline(site: Site) -> None:
    told = _node(site, requests=contract.conversation()[:1], seconds=contract.DEADLINE_SECONDS)
    assert told["code"] == _DEADLINE_EXCEEDED, told
    contract.check_no_stream_stays(site.endpoints["plain"].server)


def _metadata(site: Site) -> None:
    (key, text), (key_bytes, value) = contract.METADATA_TEXT, contract.METADATA_BYTES
    told = _node(
        site,
        model=contract.UNKNOWN_MODEL,
        metadata={key: text},
        metadataBytes={key_bytes: base64.b64encode(value).decode()},
    )
    details = base64.b64decode(told["details"][0])
    contract.check_unknown_model(told["code"], told["message"], reason_in(details))


def _large(site: Site) -> None:
    told = _node(site, requests=[contract.large_request()], halfClose=True)
    assert told["code"] == 0, told
    contract.check_large(results_of(told))


def _version(site: Site) -> str:
    found = json.loads((_modules(site) / "@grpc" / "grpc-js" / "package.json").read_text())
    return str(found["version"])


PEERS = (
    Peer(
        "@grpc/grpc-js",
        _version,
        {
            "stream": _stream,
            "cancel": _cancel,
            "half-close": _half_close,
            "deadline": _deadline,
            "metadata": _metadata,
            "gzip": partial(_stream, gzip=True),
            "TLS": partial(_stream, security="TLS"),
            "mutual TLS": partial(_stream, security="mutual TLS"),
            "3 MB message": _large,
        },
    ),
)
