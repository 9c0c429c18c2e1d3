import inspect
import subprocess
import sys

import pytest

import cellstream
from cellstream import (
    BlockingClient,
    BlockingGeneration,
    BlockingSession,
    Client,
    Generation,
    Session,
    errors,
)
from cellstream import client as client_package


def test_all_that_is_public_is_exported_and_sorted() -> None:
    """Whoever reads `__all__` sees the whole face; a class that is forgotten there is hard to find."""
    wanted = set(client_package.__all__)
    wanted |= {
        name
        for name, kind in vars(errors).items()
        if inspect.isclass(kind) and kind.__module__ == errors.__name__
    }
    assert set(cellstream.__all__) == wanted
    assert cellstream.__all__ == sorted(cellstream.__all__)
    assert client_package.__all__ == sorted(client_package.__all__)
    exported = [getattr(cellstream, name) for name in cellstream.__all__]
    assert all(one.__doc__ for one in exported if inspect.isclass(one))


def test_importing_it_needs_the_bare_install_only() -> None:
    """A client on a small machine must not load an inference runtime, nor fail for want of one."""
    heavy = ["torch", "onnx", "onnxruntime", "pydantic", "prometheus_client", "structlog", "uvloop"]
    heavy += ["typer", "rich"]
    code = f"import sys, cellstream; print(sorted(set({heavy}) & set(sys.modules)))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("blocking", "inner"),
    [(BlockingClient, Client), (BlockingSession, Session), (BlockingGeneration, Generation)],
)
def test_the_blocking_twin_lacks_nothing(blocking: type, inner: type) -> None:
    """What the asynchronous class can do, its twin can, with the same arguments, and documented."""
    for name, member in vars(inner).items():
        if name.startswith("_") or name == "aclose":
            continue
        twin = inspect.getattr_static(blocking, name)
        assert inspect.getdoc(twin), f"{blocking.__name__}.{name} is not documented"
        if inspect.isfunction(member):
            mine, theirs = inspect.signature(twin), inspect.signature(member)
            assert list(mine.parameters) == list(theirs.parameters), name
