"""For mkdocs: puts generated values where a page of the guide has `{{ name }}`; fails where there is none.

It is loaded by its path, so it imports nothing of ours.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

VALUES = Path(__file__).resolve().parents[1] / "guide" / "generated" / "values.json"
PLACE = re.compile(r"\{\{ (\w+) \}\}")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fills a page of the guide.

    Raises:
        PluginError: The page names a value that `make figures` does not write.
    """
    if not page.file.src_uri.startswith("guide/"):
        return markdown
    return fill(markdown, json.loads(VALUES.read_text(encoding="utf-8")), page.file.src_uri)


def fill(markdown: str, values: dict[str, str], page: str) -> str:
    """Puts values in their places."""
    unknown = {name for name in PLACE.findall(markdown) if name not in values}
    if unknown:
        raise PluginError(
            f"{page} names values that {VALUES.name} does not have: {', '.join(sorted(unknown))}"
        )
    return PLACE.sub(lambda place: values[place[1]], markdown)
