"""Envoy, HAProxy and nginx in front of the server, with grpcio's synchronous client in front of them.

The client speaks to the proxy without TLS; the cells TLS and mutual TLS are between proxy and server.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from trials.peers import grpcio
from trials.peers.contract import Cell, Endpoint, Peer, Security, Site
from trials.server import wait_until

START_SECONDS_MAX = 20.0


@dataclass(frozen=True, slots=True)
class Front:
    """One address of a proxy, and what is behind it."""

    port: int
    behind: Endpoint


Fronts = Mapping[Security, Front]
Configure = Callable[[Site, Fronts], list[str]]
"""Writes a proxy's configuration, and returns the command that runs it in the foreground."""


def _behind(configure: Configure, cell: Cell) -> Cell:
    """The cell, tried through the proxy."""

    def through(site: Site) -> None:
        with _running(configure, site) as fronts:
            endpoints = {
                security: Endpoint(front.port, "plain", front.behind.server)
                for security, front in fronts.items()
            }
            cell(replace(site, endpoints=endpoints))

    return through


@contextmanager
def _running(configure: Configure, site: Site) -> Iterator[Fronts]:
    fronts = {security: Front(_free_port(), behind) for security, behind in site.endpoints.items()}
    command = configure(site, fronts)
    log = site.scratch / f"{Path(command[0]).name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=site.scratch)
    try:
        for front in fronts.values():
            ready = partial(_is_ready, process, front.port)
            wait_until(ready, START_SECONDS_MAX, "the proxy listens")
        assert process.poll() is None, f"the proxy did not start:\n{log.read_text(errors='replace')[-2000:]}"
        yield fronts
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _is_ready(process: subprocess.Popen[bytes], port: int) -> bool:
    """Whether the proxy listens, or has ended."""
    return process.poll() is not None or _listens(port)


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


# ----------------------------------------------------------------------------------------------- Envoy


def _envoy(site: Site, fronts: Fronts) -> list[str]:
    resources = {
        "listeners": [_envoy_listener(security, front) for security, front in fronts.items()],
        "clusters": [_envoy_cluster(site, security, front) for security, front in fronts.items()],
    }
    path = site.scratch / "envoy.json"
    path.write_text(json.dumps({"static_resources": resources}))
    program = str(site.tools / "venv" / "bin" / "envoy")
    return [program, "-c", str(path), "--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"]


def _envoy_address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _envoy_type(name: str) -> str:
    return "type.googleapis.com/envoy.extensions." + name


def _envoy_listener(name: Security, front: Front) -> dict[str, Any]:
    route = {"match": {"prefix": "/"}, "route": {"cluster": name, "timeout": "0s"}}
    manager = {
        "@type": _envoy_type("filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "front",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": _envoy_type("filters.http.router.v3.Router")},
            }
        ],
    }
    filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
    return {"name": name, "address": _envoy_address(front.port), "filter_chains": [{"filters": filters}]}


def _envoy_cluster(site: Site, name: Security, front: Front) -> dict[str, Any]:
    endpoint = {"endpoint": {"address": _envoy_address(front.behind.port)}}
    options = _envoy_type("upstreams.http.v3.HttpProtocolOptions")
    cluster: dict[str, Any] = {
        "name": name,
        "connect_timeout": "5s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
        "typed_extension_protocol_options": {
            options.rpartition("/")[2]: {
                "@type": options,
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        },
    }
    if name != "plain":
        cluster["transport_socket"] = {
            "name": "envoy.transport_sockets.tls",
            "typed_config": _envoy_tls(site, name),
        }
    return cluster


def _envoy_tls(site: Site, name: Security) -> dict[str, Any]:
    files = site.certificates
    common: dict[str, Any] = {
        "alpn_protocols": ["h2"],
        "validation_context": {"trusted_ca": {"filename": str(files.authority)}},
    }
    if name == "mutual TLS":
        common["tls_certificates"] = [
            {
                "certificate_chain": {"filename": str(files.client_cert)},
                "private_key": {"filename": str(files.client_key)},
            }
        ]
    return {
        "@type": _envoy_type("transport_sockets.tls.v3.UpstreamTlsContext"),
        "common_tls_context": common,
        "sni": "localhost",
    }


# --------------------------------------------------------------------------------------------- HAProxy


def _haproxy(site: Site, fronts: Fronts) -> list[str]:
    files = site.certificates
    shown = site.scratch / "client-with-key.pem"  # HAProxy wants both in one file
    shown.write_bytes(files.client_cert.read_bytes() + files.client_key.read_bytes())
    trust = f"ssl verify required ca-file {files.authority} verifyhost localhost sni str(localhost) alpn h2"
    how = {"plain": "proto h2", "TLS": trust, "mutual TLS": f"{trust} crt {shown}"}
    lines = [
        "defaults",
        "  mode http",
        "  timeout connect 5s",
        "  timeout client 60s",
        "  timeout server 60s",
    ]
    for number, (security, front) in enumerate(fronts.items()):
        lines += [
            f"frontend front{number}",
            f"  bind 127.0.0.1:{front.port} proto h2",
            f"  default_backend back{number}",
            f"backend back{number}",
            f"  server cellstream 127.0.0.1:{front.behind.port} {how[security]}",
        ]
    path = site.scratch / "haproxy.cfg"
    path.write_text("\n".join(lines) + "\n")
    return ["haproxy", "-db", "-f", str(path)]


# ----------------------------------------------------------------------------------------------- nginx


def _nginx(site: Site, fronts: Fronts) -> list[str]:
    files, folder = site.certificates, site.scratch
    trust = [
        f"grpc_ssl_trusted_certificate {files.authority};",
        "grpc_ssl_verify on;",
        "grpc_ssl_name localhost;",
    ]
    shown = [f"grpc_ssl_certificate {files.client_cert};", f"grpc_ssl_certificate_key {files.client_key};"]
    how = {"plain": [], "TLS": trust, "mutual TLS": [*trust, *shown]}
    servers = []
    for security, front in fronts.items():
        scheme = "grpc" if security == "plain" else "grpcs"
        place = " ".join([f"grpc_pass {scheme}://127.0.0.1:{front.behind.port};", *how[security]])
        listen = f"listen 127.0.0.1:{front.port} http2; client_max_body_size 0;"
        servers.append(f"server {{ {listen} location / {{ {place} }} }}")
    folders = "".join(
        f"{kind}_temp_path {folder}/nginx-{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    path = folder / "nginx.conf"
    path.write_text(
        f"daemon off; user root; worker_processes 1; pid {folder}/nginx.pid; error_log stderr;\n"
        f"events {{}}\nhttp {{\naccess_log off;\n{folders}" + "\n".join(servers) + "\n}\n"
    )
    return ["nginx", "-c", str(path), "-p", str(folder), "-e", "stderr"]


# ----------------------------------------------------------------------------------------------- peers


def _says(*command: str, pattern: str = r"\d+\.\d+\.\d+") -> Callable[[Site], str]:
    def version(site: Site) -> str:
        program = [part.format(tools=site.tools) for part in command]
        done = subprocess.run(program, capture_output=True, text=True, check=False)
        found = re.search(pattern, done.stdout + done.stderr)
        return found.group() if found else "?"

    return version


def _peer(name: str, version: Callable[[Site], str], configure: Configure) -> Peer:
    cells = grpcio.synchronous_cells(name)
    return Peer(name, version, {ability: _behind(configure, cell) for ability, cell in cells.items()})


PEERS = (
    _peer("Envoy in front", _says("{tools}/venv/bin/envoy", "--version"), _envoy),
    _peer("HAProxy in front", _says("haproxy", "-v"), _haproxy),
    _peer("nginx in front", _says("nginx", "-v"), _nginx),
)
