"""The engine alone, in this process: sessions that always have tokens waiting."""

from __future__ import annotations

import time
from typing import Literal

import numpy as np

from bench.measure import Run
from cellstream.engine import Answer, Engine, Feed, Progress, Want
from cellstream.repository import ModelVersion
from cellstream.settings import Settings


class EngineLoad:
    """Sessions of one engine, each submitting its next feed as soon as the last is done.

    Args:
        version: The model.
        sessions: How many.
        feed_tokens: Tokens of a feed. Every token gets its most likely successor.
        seed: Of the tokens.
        numerics: As the server's setting.

    Raises:
        RuntimeError: The model cannot serve in these numerics here.
    """

    def __init__(
        self,
        version: ModelVersion,
        *,
        sessions: int,
        feed_tokens: int,
        seed: int,
        numerics: Literal["exact", "fast"] = "exact",
    ) -> None:
        settings = Settings()  # the engine as the server would make it
        self.engine = Engine(
            version,
            slots_max=settings.slots_max,
            batch_rows_max=settings.batch_rows_max,
            step_milliseconds_max=settings.step_milliseconds_max,
            intra_op_threads=settings.intra_op_threads,
            numerics=numerics,
        )
        if self.engine.numerics != numerics:
            raise RuntimeError(f"{version.manifest.name} serves exact only: {self.engine.why_exact}")
        vocabulary = version.manifest.input.vocabulary_size
        random = np.random.default_rng(seed)
        self._inputs = random.integers(0, vocabulary, (sessions, feed_tokens)).tolist()
        self._answer = Answer(want=Want.EVERY_STEP, top_k=1)
        self._slots = [self.engine.take_slot() for _ in range(sessions)]
        for slot in self._slots:
            self._submit(slot)

    def _submit(self, slot: int) -> None:
        self.engine.submit(Feed(slot, self._inputs[slot], self._answer, self._told, time.perf_counter()))

    def _told(self, feed: Feed, progress: Progress) -> None:
        if progress.error is not None:
            raise progress.error
        if progress.done:
            self._submit(feed.slot)

    def run(self, seconds: float) -> Run:
        """Turns for so long."""
        engine, tokens, steps = self.engine, 0, 0
        cpu, began = time.process_time(), time.perf_counter()
        while time.perf_counter() - began < seconds:
            call = engine.turn()
            assert call is not None, "somebody always waits"
            tokens += call.tokens
            steps += call.steps
        return Run(
            tokens=tokens,
            seconds=time.perf_counter() - began,
            cpu_seconds=time.process_time() - cpu,
            mean_batch=tokens / steps,
        )
