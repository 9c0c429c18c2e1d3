"""Whoever runs this server tells nobody about it."""

import os
import subprocess
import sys
from pathlib import Path


def test_onnx_runtime_reports_nothing(tmp_path: Path) -> None:
    """ONNX Runtime from 1.32 on reports to its maker, and begins with files in the home directory."""
    home = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    ran = subprocess.run(
        [sys.executable, "-c", "import cellstream.engine, sys; assert 'onnxruntime' in sys.modules"],
        env=home | {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert list(tmp_path.rglob("*")) == []
