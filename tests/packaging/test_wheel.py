"""What is installed: a wheel with its types and without its tests, whose bare form needs little."""

import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

# What the extras bring; the bare install has none of it.
EXTRAS = (
    *("onnx", "onnxruntime", "torch", "matplotlib"),
    *("grpc_health", "grpc_reflection", "prometheus_client", "pydantic", "pydantic_settings"),
    *("structlog", "tokenizers", "uvloop"),
)

BLOCK = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {EXTRAS!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from a copy, so that the checkout stays clean."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, source)
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(root / "service", source / "service", ignore=ignored)
    build = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    built = subprocess.run(
        [sys.executable, "-c", build], cwd=source, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    (path,) = (source / "dist").glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_the_package_and_its_types(wheel: zipfile.ZipFile, root: Path) -> None:
    """Every module of the checkout, the stubs and `py.typed`, or a user's mypy sees nothing."""
    service = root / "service"
    expected = {
        str(path.relative_to(service))
        for pattern in ("*.py", "*.pyi", "*.binpb", "py.typed")
        for path in (service / "cellstream").rglob(pattern)
    }
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert {name for name in expected if name.endswith((".py", "py.typed"))} <= packed
    assert expected == packed


def test_the_wheel_holds_no_tests_and_no_models(wheel: zipfile.ZipFile) -> None:
    """Who installs a client does not want our tests on the import path, nor megabytes of weights."""
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"cellstream"}
    assert not [name for name in wheel.namelist() if "test_" in name or name.endswith((".onnx", ".bin"))]


def test_the_wheel_says_what_it_needs(wheel: zipfile.ZipFile) -> None:
    """The bare install is the client and the command line; what serves and what trains are extras."""
    (name,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
    metadata = Parser().parsestr(wheel.read(name).decode())
    assert {"serve", "train", "dev"} <= set(metadata.get_all("Provides-Extra", []))
    needs = metadata.get_all("Requires-Dist", [])
    bare = {re.split("[<>=]", need)[0] for need in needs if "extra ==" not in need}
    assert bare == {"grpcio", "protobuf", "googleapis-common-protos", "numpy", "typer", "rich"}
    assert metadata["License-Expression"] == "Apache-2.0"
    (entry,) = (name for name in wheel.namelist() if name.endswith("/entry_points.txt"))
    assert b"cellstream = cellstream.cli:main" in wheel.read(entry)


@pytest.mark.parametrize(
    "code",
    [
        "import cellstream; [getattr(cellstream, name) for name in cellstream.__all__]",
        "import cellstream.client",
        "import sys; from cellstream.cli import main; sys.argv = ['cellstream', '--help']; main()",
    ],
    ids=["cellstream", "cellstream.client", "cellstream --help"],
)
def test_the_bare_install_is_enough_for_a_client(code: str) -> None:
    """Who only talks to a server installs neither ONNX Runtime nor torch, and no server's libraries."""
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", BLOCK + code], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
