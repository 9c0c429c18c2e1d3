"""The image and the compose file keep what the documentation says of them; `make compose-test` runs them."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from cellstream import TlsOptions
from cellstream.settings import Settings


@pytest.fixture(scope="module")
def services(root: Path) -> dict[str, dict[str, Any]]:
    """The services of the compose file."""
    services: dict[str, dict[str, Any]] = yaml.safe_load((root / "docker-compose.yml").read_text())[
        "services"
    ]
    return services


@pytest.fixture(scope="module")
def dockerfile(root: Path) -> str:
    """The Dockerfile, its comments left out."""
    return re.sub(r"(?m)^#.*\n", "", (root / "Dockerfile").read_text())


def test_images_are_pinned(root: Path, services: dict[str, dict[str, Any]]) -> None:
    """`latest` is another thing every week; and our image is called as the package's version is."""
    version = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    assert services["cellstream"]["image"] == f"cellstream:{version}"
    for name, service in services.items():
        assert re.search(r":v?\d+\.\d+\.\d+$", service["image"]), name


def test_ports_are_published_on_this_machine_only(services: dict[str, dict[str, Any]]) -> None:
    """The server asks nobody who they are, so the network must not reach it unless somebody says so."""
    for name, service in services.items():
        for port in service["ports"]:
            assert re.fullmatch(r"\$\{[A-Z]+_PUBLISH:-127\.0\.0\.1:\d+\}:\d+", port), name
    assert len(services["cellstream"]["ports"]) == 1, "only gRPC; /metrics stays inside"


def test_the_service_can_do_little(services: dict[str, dict[str, Any]]) -> None:
    """What breaks out of the process finds no file to write, no capability and no new privilege."""
    service = services["cellstream"]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert all(service[limit] for limit in ("mem_limit", "cpus", "pids_limit", "ulimits"))
    for other in services.values():
        assert other["cap_drop"] == ["ALL"]
        assert other["security_opt"] == ["no-new-privileges:true"]
        assert other["mem_limit"]


def test_a_stop_waits_for_the_drain(services: dict[str, dict[str, Any]], settings: Settings) -> None:
    """A container killed in the middle of its drain tells its clients nothing."""
    grace = float(services["cellstream"]["stop_grace_period"].removesuffix("s"))
    assert grace >= settings.drain_seconds + 2.0


def test_addresses_agree(
    root: Path, services: dict[str, dict[str, Any]], dockerfile: str, settings: Settings
) -> None:
    """The ports stand in the settings, the Dockerfile, the compose file and Prometheus's: one number each."""
    scrapes = yaml.safe_load((root / "deploy" / "prometheus" / "prometheus.yml").read_text())[
        "scrape_configs"
    ]
    assert f"EXPOSE {settings.port} {settings.metrics_port}\n" in dockerfile
    assert services["cellstream"]["ports"][0].endswith(f":{settings.port}")
    assert scrapes[0]["static_configs"][0]["targets"] == [f"cellstream:{settings.metrics_port}"]
    assert scrapes[0]["job_name"] == "cellstream"


def test_what_is_mounted_exists(root: Path, services: dict[str, dict[str, Any]]) -> None:
    """Docker makes an empty directory of a path that is missing, and the service starts without its file."""
    for service in services.values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert not source.startswith("./") or (root / source).exists(), volume


def test_the_image_is_what_serves_and_no_more(dockerfile: str) -> None:
    """No torch, no root, nothing of the build, and every base the same."""
    stages = re.findall(r"(?m)^FROM (\S+)", dockerfile)
    assert stages == ["python:3.11-slim-bookworm"] * 2
    assert re.search(r"(?m)^USER 10001:10001$", dockerfile)
    assert "['serve']" in dockerfile
    assert "['train']" not in dockerfile
    assert "['dev']" not in dockerfile
    assert 'CMD ["cellstream", "health"]\n' in dockerfile, "whatever port and certificates it is given"


def test_the_environment_of_the_image_is_of_settings(dockerfile: str, settings: Settings) -> None:
    """A misspelt variable would be refused at start, or worse, mean nothing."""
    names = set(re.findall(r"CELLSTREAM_([A-Z_]+)=", dockerfile))
    assert names == {"HOST", "METRICS_HOST", "LOG_FORMAT", "MODELS", "DEFAULT_MODEL"}
    assert {name.lower() for name in names} <= set(type(settings).model_fields)


def test_the_environment_in_the_documentation_is_known(root: Path, settings: Settings) -> None:
    """An example with a misspelt variable stops the server, or leaves the health check without its file."""
    examples = "".join(re.findall(r"```yaml\n(.*?)```", (root / "docs" / "deploy.md").read_text(), re.DOTALL))
    names = set(re.findall(r"\bCELLSTREAM_([A-Z_]+):", examples))
    assert {"TLS_CERT", "TLS_KEY", "TLS_CLIENT_CA"} <= names
    of_the_client = {"CLIENT_" + name.upper() for name in TlsOptions.__annotations__}
    assert {name.lower() for name in names - of_the_client} <= set(type(settings).model_fields)


def test_the_default_model_is_shipped(root: Path, dockerfile: str) -> None:
    """Several models are copied in, and the server does not start without knowing which is the default."""
    named = re.search(r"CELLSTREAM_DEFAULT_MODEL=(\S+)", dockerfile)
    assert named
    assert list((root / "models" / named[1]).glob("*/manifest.json"))
