"""grpcurl and k6: two programs on gRPC for Go. grpcurl learns the service from the server's reflection."""

from __future__ import annotations

import base64
import json
import re
import subprocess
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

from google.protobuf import json_format

from cellstream.v1 import prediction_pb2 as pb
from trials.peers import contract
from trials.peers.contract import SECONDS, Peer, Security, Site
from trials.peers.wire import json_values, results_of

_DEADLINE_EXCEEDED = 4
_NOT_FOUND = 5

# ---------------------------------------------------------------------------------------------- grpcurl

_EXIT_BASE = 64
"""grpcurl exits with this plus the status code."""


def _reason(details: Sequence[dict[str, Any]]) -> str:
    """ErrorInfo's reason among details as JSON; grpcurl must learn that message by reflection, too."""
    return next((detail["reason"] for detail in details if "reason" in detail), f"no reason in {details}")


def _program(site: Site, name: str) -> str:
    return str(site.tools / "venv" / "bin" / name)


def _grpcurl_command(site: Site, security: Security, method: str, *flags: str) -> list[str]:
    files = site.certificates
    trust = {
        "plain": ["-plaintext"],
        "TLS": ["-cacert", str(files.authority)],
        "mutual TLS": [
            *("-cacert", str(files.authority)),
            *("-cert", str(files.client_cert), "-key", str(files.client_key)),
        ],
    }[security]
    target = site.endpoints[security].target
    return [_program(site, "grpcurl"), *trust, *flags, "-d", "@", target, method.strip("/")]


def _grpcurl(
    site: Site, requests: Sequence[pb.PredictRequest], security: Security = "plain", *flags: str
) -> list[pb.Result]:
    """Send all, half-close, and return the results."""
    done = subprocess.run(
        _grpcurl_command(site, security, contract.PREDICT, *flags),
        input="\n".join(json_format.MessageToJson(request) for request in requests),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [result for told in json_values(done.stdout) for result in results_of(told)]


def _grpcurl_stream(site: Site) -> None:
    """Ping-pong: the next request is written once the last one is answered."""
    command = _grpcurl_command(site, "plain", contract.PREDICT)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            results: list[pb.Result] = []
            for answered, request in enumerate(contract.conversation(), start=1):
                process.stdin.write(json_format.MessageToJson(request) + "\n")
                process.stdin.flush()
                while len(results) < answered:
                    results += results_of(_next_value(process.stdout))
            process.stdin.close()
            assert process.wait(SECONDS) == 0
        finally:
            process.kill()
    contract.check_answers(site, results)


def _next_value(output: IO[str]) -> Any:
    """The next JSON object that grpcurl prints; it ends with a brace at the line's beginning."""
    lines = []
    for line in output:
        lines.append(line)
        if line.rstrip() in ("}", "{}"):
            return json.loads("".join(lines))
    raise AssertionError(f"grpcurl ended: {''.join(lines)}")


def _grpcurl_whole(site: Site, *, security: Security = "plain") -> None:
    contract.check_answers(site, _grpcurl(site, contract.conversation(), security))


def _grpcurl_deadline(site: Site) -> None:
    """A Watch, because a call that reads standard input outlasts grpcurl's own deadline."""
    done = subprocess.run(
        _grpcurl_command(site, "plain", contract.WATCH, "-max-time", str(contract.DEADLINE_SECONDS)),
        input="{}",
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert "SERVING" in done.stdout, done
    assert done.returncode == _EXIT_BASE + _DEADLINE_EXCEEDED, (done.returncode, done.stderr)


def _grpcurl_metadata(site: Site) -> None:
    (key, text), (key_bytes, value) = contract.METADATA_TEXT, contract.METADATA_BYTES
    headers = ["-H", f"{key}: {text}", "-H", f"{key_bytes}: {base64.b64encode(value).decode()}"]
    done = subprocess.run(
        _grpcurl_command(site, "plain", contract.GET_MODEL, "-format-error", *headers),
        input=json.dumps({"name": contract.UNKNOWN_MODEL}),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == _EXIT_BASE + _NOT_FOUND, (done.returncode, done.stderr)
    status = json.loads(done.stderr[done.stderr.index("{") :])
    reason = _reason(status["details"])
    contract.check_unknown_model(status["code"], status["message"], reason)


def _grpcurl_large(site: Site) -> None:
    contract.check_large(_grpcurl(site, [contract.large_request()]))


def _grpcurl_version(site: Site) -> str:
    done = subprocess.run(
        [_program(site, "grpcurl"), "-version"], capture_output=True, text=True, check=False
    )
    return done.stderr.split()[-1].removeprefix("v")


# --------------------------------------------------------------------------------------------------- k6

_SCRIPT = Path(__file__).with_name("k6.js")


def _k6(site: Site, security: Security = "plain", **asked: Any) -> dict[str, Any]:
    """Run the script once, and return what it told."""
    files = site.certificates
    asked = {
        "protos": str(site.protos),
        "target": site.endpoints[security].target,
        "seconds": SECONDS,
        **asked,
    }
    if security != "plain":
        asked["tls"] = {"cacerts": files.authority.read_text()}
    if security == "mutual TLS":
        asked["tls"] |= {"cert": files.client_cert.read_text(), "key": files.client_key.read_text()}
    path, told = site.scratch / "k6.json", site.scratch / "k6.told"
    path.write_text(json.dumps(asked))
    command = [_program(site, "k6"), "run", "--quiet", "--no-usage-report", "--no-summary", "--address", ""]
    done = subprocess.run(
        [*command, "--console-output", str(told), "--log-format", "raw", "-e", f"ASKED={path}", str(_SCRIPT)],
        capture_output=True,
        text=True,
        timeout=2 * SECONDS,
        check=False,
        cwd=site.scratch,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = told.read_text().splitlines()
    told.unlink()
    assert lines, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def _dictionaries(requests: Sequence[pb.PredictRequest]) -> list[dict[str, Any]]:
    return [json_format.MessageToDict(request) for request in requests]


def _k6_stream(site: Site, *, security: Security = "plain") -> None:
    told = _k6(site, security, requests=_dictionaries(contract.conversation()), pingPong=True)
    assert told["code"] == 0, told
    contract.check_answers(site, results_of(told))


def _k6_half_close(site: Site) -> None:
    told = _k6(site, requests=_dictionaries(contract.conversation()), halfClose=True)
    assert told["code"] == 0, told
    contract.check_answers(site, results_of(told))


def _k6_deadline(site: Site) -> None:
    told = _k6(site, requests=_dictionaries(contract.conversation()[:1]), seconds=contract.DEADLINE_SECONDS)
    assert told["code"] == _DEADLINE_EXCEEDED, told
    contract.check_no_stream_stays(site.endpoints["plain"].server)


def _k6_metadata(site: Site) -> None:
    (key, text), (key_bytes, value) = contract.METADATA_TEXT, contract.METADATA_BYTES
    told = _k6(
        site,
        model=contract.UNKNOWN_MODEL,
        metadata={key: text},
        metadataBytes={key_bytes: base64.b64encode(value).decode()},
    )
    contract.check_unknown_model(told["code"], told["message"], _reason(told["details"]))


def _k6_large(site: Site) -> None:
    told = _k6(site, requests=_dictionaries([contract.large_request()]), halfClose=True)
    assert told["code"] == 0, told
    contract.check_large(results_of(told))


def _k6_version(site: Site) -> str:
    done = subprocess.run([_program(site, "k6"), "version"], capture_output=True, text=True, check=False)
    found = re.search(r"v(\d+\.\d+\.\d+)", done.stdout)
    return found.group(1) if found else "?"


PEERS = (
    Peer(
        "grpcurl (Go)",
        _grpcurl_version,
        {
            "stream": _grpcurl_stream,
            "half-close": _grpcurl_whole,
            "deadline": _grpcurl_deadline,
            "metadata": _grpcurl_metadata,
            "TLS": partial(_grpcurl_whole, security="TLS"),
            "mutual TLS": partial(_grpcurl_whole, security="mutual TLS"),
            "3 MB message": _grpcurl_large,
        },
        {"cancel": "it ends with its process only", "gzip": "it has no flag that packs requests"},
    ),
    Peer(
        "k6 (Go)",
        _k6_version,
        {
            "stream": _k6_stream,
            "half-close": _k6_half_close,
            "deadline": _k6_deadline,
            "metadata": _k6_metadata,
            "TLS": partial(_k6_stream, security="TLS"),
            "mutual TLS": partial(_k6_stream, security="mutual TLS"),
            "3 MB message": _k6_large,
        },
        {"cancel": "its streams have end() only", "gzip": "it does not pack requests"},
    ),
)
