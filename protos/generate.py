"""Rebuilds what is generated from the protos, or with `--check` tells whether it is fresh.

Stubs go to service/cellstream/v1: protobuf's and gRPC's code, and mypy-protobuf's types for both. The page
for people is docs/protocol.md. Of gRPC's own services, health and reflection, only the descriptors are
written, which `cellstream.api.standard_protos` loads apart from anybody else's.
"""

from __future__ import annotations

import argparse
import filecmp
import subprocess
import sys
import tempfile
from pathlib import Path

from document import render

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path("cellstream/v1")
PAGE = ROOT / "docs" / "protocol.md"
FILES = ("prediction", "session", "model")
STANDARD = Path("cellstream/api/standard_protos.binpb")
STANDARD_FILES = (
    "grpc/health/v1/health.proto",
    "grpc/reflection/v1/reflection.proto",
    "grpc/reflection/v1alpha/reflection.proto",
)
PLUGINS = ("protoc-gen-mypy", "protoc-gen-mypy_grpc")


def write_stubs(output: Path) -> None:
    """Write the stubs below `output`."""
    scripts = Path(sys.executable).parent
    subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'protos'}"),
            *(f"--plugin={plugin}={scripts / plugin}" for plugin in PLUGINS),
            *(f"--{kind}_out={output}" for kind in ("python", "grpc_python")),
            *(f"--{kind}_out=quiet:{output}" for kind in ("mypy", "mypy_grpc")),
            *(str(ROOT / "protos" / PACKAGE / f"{name}.proto") for name in FILES),
        ],
        check=True,
    )


def write_descriptors(output: Path) -> None:
    """Write the descriptors of gRPC's own services, one FileDescriptorSet, below `output`."""
    (output / STANDARD).parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'protos'}"),
            f"--descriptor_set_out={output / STANDARD}",
            *STANDARD_FILES,
        ],
        check=True,
    )


def stale(fresh: Path, committed: Path) -> list[str]:
    """Names of the files that differ, or that only one side has; `__init__.py` is written by hand."""
    names = {path.name for side in (fresh, committed) for path in side.glob("*.py*")} - {"__init__.py"}
    _, different, missing = filecmp.cmpfiles(fresh, committed, sorted(names), shallow=False)
    return different + missing


def main() -> int:
    """Write, or check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if something is stale")
    page = render(tuple(str(PACKAGE / f"{name}.proto") for name in FILES))
    if not parser.parse_args().check:
        write_stubs(ROOT / "service")
        write_descriptors(ROOT / "service")
        PAGE.write_text(page, encoding="utf-8")
        return 0
    with tempfile.TemporaryDirectory() as directory:
        write_stubs(Path(directory))
        write_descriptors(Path(directory))
        committed = ROOT / "service" / PACKAGE
        differing = [committed / name for name in stale(Path(directory) / PACKAGE, committed)]
        descriptors = ROOT / "service" / STANDARD
        if not descriptors.is_file() or descriptors.read_bytes() != (Path(directory) / STANDARD).read_bytes():
            differing.append(descriptors)
    if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page:
        differing.append(PAGE)
    for path in differing:
        print(f"{path.relative_to(ROOT)} is stale: run `make protos`", file=sys.stderr)  # noqa: T201 - a script
    return int(bool(differing))


if __name__ == "__main__":
    sys.exit(main())
