"""Runs a model for many sessions at once: schedule, run, settle.

Knows slots and numbers; no session ids, no streams, no text. Nothing here awaits.
"""

from cellstream.engine.batch import Answer, Call, Feed, Progress, Sampling, Want
from cellstream.engine.engine import Engine

__all__ = ["Answer", "Call", "Engine", "Feed", "Progress", "Sampling", "Want"]
