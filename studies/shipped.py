"""The shipped model's curves, by ONNX Runtime from its newest version: `python -m studies.shipped [MODEL]`.

The same places and questions as `studies.memory`. It learned for longer and from another recipe than the four
networks of the study, so it shows what training adds, not what a cell adds.
"""

from __future__ import annotations

import sys

from cellstream.repository.repository import Repository
from studies import page
from studies.memory import heldout_works, measure
from studies.predictors import ServedPredictor
from studies.study import MODELS, write_result


def main() -> None:
    """Measure the newest version, then draw everything again."""
    name = sys.argv[1] if len(sys.argv) > 1 else "shakespeare-lstm"
    version = Repository(MODELS).load(name)
    manifest = version.manifest
    measured = measure(ServedPredictor(version), heldout_works())
    about = {"name": f"{name}/{manifest.version}", "weights": manifest.architecture.parameters}
    write_result("shipped", {**about, **measured})
    page.main()


if __name__ == "__main__":
    main()
