"""`make fuzz`: conversations, guided by the coverage of transport/ and hpack (atheris on libFuzzer).

What was found interesting is kept in a corpus, and the next run goes on from there. A conversation that
breaks a promise is written to the corpus's folder as `crash-…`, and `python -m trials.fuzz.guided FILE` holds
it again.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["cellstream.transport", "hpack"]):
    from trials.fuzz import conversation


def main() -> None:
    """Fuzz; the arguments are libFuzzer's."""
    atheris.Setup(sys.argv, conversation.run_once)
    atheris.Fuzz()


if __name__ == "__main__":
    if len(sys.argv) == 2 and Path(sys.argv[1]).is_file():
        conversation.converse(Path(sys.argv[1]).read_bytes())
    else:
        main()
