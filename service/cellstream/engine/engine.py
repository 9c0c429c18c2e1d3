"""Schedule, run, settle: one turn takes what waits through one call of the graph.

Plain code: no await, no lock, no thread, no clock but the one it is given. Whoever owns the engine calls
`turn` while anything waits; in between, and from inside `on_progress`, feeds are submitted and withdrawn, and
slots taken and given back. What a turn keeps:

1. A step commits whole or not at all. Everything that can fail (the graph, the check for finite numbers, the
   making of answers) comes before the first write to the slab.
2. A feed that cannot be served fails alone. A call that raises, or a row that is not finite, is run again row
   by row and then token by token, so that what is committed depends neither on the batch nor on the cuts. A
   call of the sequence graph (`fast` numerics) that is in doubt is first run again on the step graph.
3. Every feed hears of its end. Feeds are told after everything is committed, each call of `on_progress`
   guarded: an exception in one is reported, and the others are told.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import structlog
from numpy.typing import NDArray

from cellstream.engine.batch import Call, Feed, Progress, Want
from cellstream.engine.calibration import check_sequence, measure_costs, measure_telling, self_check
from cellstream.engine.costs import Costs
from cellstream.engine.graph import Buffers, Graph, RowByRow, Runs, StepGraph
from cellstream.engine.sampling import draw
from cellstream.engine.scheduler import STEPS_MAX, Batch, Scheduler
from cellstream.engine.sequence import SequenceGraph
from cellstream.engine.settling import settle
from cellstream.engine.slab import Slab
from cellstream.errors import CellstreamError, InternalError, NonFinite, StepFailed
from cellstream.repository import ModelVersion

log = structlog.get_logger(__name__)

Told = list[tuple[Feed, Progress]]
"""What is to be told to whom, once a turn has committed everything."""


def _log_waiter_error(error: BaseException) -> None:
    log.error("waiter_failed", exc_info=error)


class Engine:
    """Serves the sessions of one model version.

    Args:
        version: The model on disk, checked.
        slots_max: Sessions with a state in memory.
        batch_rows_max: Rows of one call.
        step_milliseconds_max: Target for one call; sets how many rows and steps it may have, from costs
            measured here.
        intra_op_threads: ONNX Runtime's threads.
        numerics: `exact`: every answer is bit for bit what the session would get alone. `fast`: to 1e-5;
            long feeds run on the sequence graph where that is cheaper, if the version has a sound one.
        clock: Seconds, monotonic.
        on_waiter_error: Told what an `on_progress` raised.

    Attributes:
        manifest: What the model says of itself.
        numerics: As it serves.
        why_exact: Why it serves `exact` where `fast` was asked for; None: it does not.
        numerics_digest: Equal on two servers: their answers are equal, bit for bit in `exact` numerics.
        row_by_row: Whether rows run one at a time, because here a batch changes its rows' results.
        step_costs: What calls of the step graph cost here.
        sequence_costs: What calls of the sequence graph do; None where it does not serve.
    """

    def __init__(
        self,
        version: ModelVersion,
        *,
        slots_max: int,
        batch_rows_max: int,
        step_milliseconds_max: float,
        intra_op_threads: int = 1,
        numerics: Literal["exact", "fast"] = "exact",
        clock: Callable[[], float] = time.perf_counter,
        on_waiter_error: Callable[[BaseException], None] = _log_waiter_error,
    ) -> None:
        self.manifest = manifest = version.manifest
        self._clock = clock
        self._on_waiter_error = on_waiter_error
        graph: StepGraph = Graph(
            manifest,
            version.step_graph,
            version.head_graph,
            intra_op_threads=intra_op_threads,
        )
        checked = self_check(graph, manifest, batch_rows_max)
        self.numerics_digest = checked.numerics_digest
        self.row_by_row = not checked.rows_independent
        self._step_by_step = not checked.steps_independent
        self._graph = RowByRow(manifest, graph) if self.row_by_row else graph
        self._sequence: SequenceGraph | None = None
        self._sequence_failed = False  # It is told of once.
        self.why_exact: str | None = None
        if numerics == "fast":
            if version.sequence_graph is None:
                self.why_exact = (
                    "the version has no sequence graph; `cellstream export` of it makes a version with one"
                )
            else:
                sequence = SequenceGraph(manifest, version.sequence_graph, intra_op_threads=intra_op_threads)
                found = check_sequence(sequence, self._graph, manifest, checked, batch_rows_max)
                self.why_exact = found.why_not
                if found.why_not is None:
                    self._sequence, self.numerics_digest = sequence, found.numerics_digest
        self.numerics: Literal["exact", "fast"] = "exact" if self._sequence is None else "fast"

        call_seconds_max = step_milliseconds_max / 1000
        # What else runs on the machine while it loads must not be in a table that stays. Only the time of
        # one thread is its own: where there are more, it does not tell how long they waited for each other.
        # A clock that a test moves stays the only one.
        alone = intra_op_threads == 1 and clock is time.perf_counter
        timer = time.thread_time if alone else clock

        def costs_of(graph: Runs) -> Costs:
            return measure_costs(
                graph, manifest, batch_rows_max=batch_rows_max, call_seconds_max=call_seconds_max, clock=timer
            )

        self.step_costs = costs_of(self._graph)
        self.sequence_costs = None if self._sequence is None else costs_of(self._sequence)
        self._scheduler = Scheduler(
            self.step_costs,
            batch_rows_max=batch_rows_max,
            call_seconds_max=call_seconds_max,
            steps_max=1 if self._step_by_step else STEPS_MAX,
            sequence=self.sequence_costs,
            telling=measure_telling(manifest, timer),
        )
        self._slab = Slab(manifest.states, slots_max)
        # By slot, the log-probabilities of the next token, while a feed waits that scores or samples.
        self._before: dict[int, NDArray[np.float32]] = {}

    def __repr__(self) -> str:
        return (
            f"<Engine {self.manifest.name}/{self.manifest.version}: {self.slots_taken} of {self.slots_max} "
            f"slots taken, {self.waiting} feeds waiting>"
        )

    # ------------------------------------------------------------ slots

    @property
    def slots_max(self) -> int:
        """How many sessions fit."""
        return self._slab.slots_max

    @property
    def slots_taken(self) -> int:
        """How many slots are taken."""
        return self._slab.slots_taken

    def take_slot(self) -> int:
        """Takes the lowest free slot, in its initial state at position 0.

        Raises:
            TooManySessions: No slot is free.
        """
        return self._slab.take()

    def give_back(self, slot: int) -> None:
        """Frees a slot; no feed of it may be waiting."""
        self._assert_idle(slot)
        self._slab.give_back(slot)

    def reset(self, slot: int) -> None:
        """Puts a slot back to its initial state, position 0; no feed of it may be waiting."""
        self._assert_idle(slot)
        self._slab.reset(slot)

    def position(self, slot: int) -> int:
        """How many tokens the slot's session has absorbed."""
        return int(self._slab.positions[slot])

    # ------------------------------------------------------------ feeds

    @property
    def waiting(self) -> int:
        """How many feeds wait."""
        return len(self._scheduler.waiting)

    @property
    def oldest_received_at(self) -> float | None:
        """When the oldest of the feeds that wait for their first token was received; None if none does."""
        waiting = self._scheduler.waiting.values()
        return min((feed.received_at for feed in waiting if not feed.applied), default=None)

    def submit(self, feed: Feed) -> None:
        """Lets a feed wait for its turn, from its token number `applied` on; one feed of a slot at a time."""
        if feed.slot in self._scheduler.waiting:
            self._assert_idle(feed.slot)
        assert self._slab.taken[feed.slot], f"slot {feed.slot} is not taken"
        assert not feed.finished, "the feed is over"
        assert len(feed.inputs) > feed.applied or (
            feed.sampling is not None and feed.made < feed.sampling.max_tokens
        ), "the feed has no token to apply"
        self._scheduler.add(feed)

    def withdraw(self, feed: Feed) -> None:
        """Takes a feed out, between two of its tokens; `submit` goes on with it. Nothing if it does not wait.

        Inside `on_progress`, the feed may have been settled in the same turn and not yet told: it still
        will be.
        """
        if self._scheduler.remove(feed):
            self._before.pop(feed.slot, None)

    def _assert_idle(self, slot: int) -> None:
        """Asserts that no feed of the slot waits; one that its `on_progress` has just finished is over."""
        waiting = self._scheduler.waiting.get(slot)
        if waiting is not None:
            assert waiting.finished, f"a feed of slot {slot} is waiting"
            self.withdraw(waiting)

    # ------------------------------------------------------------ a turn

    def turn(self) -> Call | None:
        """Schedules, runs and settles one call, and tells whoever it concerns; None when nothing waits."""
        started_at = self._clock()
        batch = self._scheduler.next_batch()
        if batch is None:
            return None
        feeds = batch.feeds
        first_steps = [feed for feed in feeds if not feed.applied]
        told: Told = []
        steps = tokens = 0
        try:
            steps, tokens = self._run(batch, told)
        except Exception as error:
            # Our own mistake, or no memory; whatever it is, nobody is left waiting for an answer.
            failure = InternalError.with_new_id()
            log.exception("call_failed", error_id=failure.values["error_id"])
            for feed in feeds:
                if self._scheduler.waiting.get(feed.slot) is feed:
                    self._fail(feed, failure, error, told)
        finally:
            self._tell(told)
        return Call(
            rows=len(feeds),
            steps=steps,
            tokens=tokens,
            seconds=self._clock() - started_at,
            queue_seconds=[started_at - feed.received_at for feed in first_steps if feed.applied],
        )

    def _look_ahead(self, feeds: Sequence[Feed], steps: int) -> None:
        """Sees to the predictions before the next tokens, for rows that score or sample, and draws tokens."""
        missing = [
            feed for feed in feeds if feed.slot not in self._before and self._needs_prediction(feed, steps)
        ]
        if missing:
            slots = _slots(missing)
            self._before.update(zip(slots.tolist(), self._graph.head(self._slab.rows(slots)), strict=True))
        drawing = [feed for feed in feeds if feed.sampling is not None and feed.applied == len(feed.inputs)]
        if drawing:
            predictions = np.stack([self._before[feed.slot] for feed in drawing])
            samplings = [feed.sampling for feed in drawing if feed.sampling is not None]
            tokens = draw(predictions, samplings, self._slab.positions[_slots(drawing)])
            for feed, token in zip(drawing, tokens, strict=True):
                assert isinstance(feed.inputs, list)  # Only tokens are drawn.
                feed.inputs.append(token)
                feed.made += 1

    def _needs_prediction(self, feed: Feed, steps: int) -> bool:
        """Whether the next call needs the prediction before its first token."""
        left = len(feed.inputs) - feed.applied
        if feed.sampling is not None and not left:
            return True
        if not feed.answer.score or not self.position(feed.slot):
            return False
        want = feed.answer.want
        return want is Want.EVERY_STEP or (want is Want.LAST and left == steps == 1)

    def _run(self, batch: Batch, told: Told) -> tuple[int, int]:
        """Runs and settles a batch on the graph that it names; where in doubt, on the step graph.

        Returns:
            How many steps ran, and how many tokens were committed.
        """
        feeds = batch.feeds
        parts = self._run_sequence(feeds, batch.sequence_steps) if batch.sequence_steps else None
        if parts is None:
            return batch.steps, self._step(feeds, batch.steps, told)
        ran = tokens = 0
        for rows, results in parts:
            chosen = [feeds[row] for row in rows]
            if _rows_not_finite(results):
                steps = min(results.steps, batch.steps)
                tokens += self._step(chosen, steps, told)
            else:
                steps = results.steps
                tokens += self._commit(chosen, _slots(chosen), results, told)
            ran = max(ran, steps)
        return ran, tokens

    def _run_sequence(self, feeds: Sequence[Feed], steps: int) -> list[tuple[list[int], Buffers]] | None:
        """Runs up to `steps` tokens of each feed on the sequence graph, and settles nothing.

        Returns:
            Rows that had the same number of steps, and their results; None where the graph raises, or cannot
            be trusted with these tokens.
        """
        graph = self._sequence
        assert graph is not None, "the scheduler knows what a call of it costs"
        try:
            if special := _special(feeds):
                self._look_ahead(special, steps)
            buffers = graph.filled(feeds, steps)
            if buffers is None:
                return None
            self._slab.gather(_slots(feeds), buffers.states)
            graph.run(buffers)
            return list(graph.apart(buffers))
        except Exception as error:
            # The step graph finds whose fault it is; where it finds none, only this tells why `fast` is not.
            if not self._sequence_failed:
                self._sequence_failed = True
                manifest = self.manifest
                log.warning(
                    "sequence_failed", model=manifest.name, version=str(manifest.version), exc_info=error
                )
            return None

    def _step(self, feeds: Sequence[Feed], steps: int, told: Told) -> int:
        """Runs and settles `steps` tokens of each feed; on failure, fewer and fewer at once.

        Returns:
            How many tokens were committed.
        """
        special, slots = _special(feeds), _slots(feeds)
        gates = any(feed.answer.gates for feed in special)
        try:
            if special:
                self._look_ahead(special, steps)
            buffers = self._graph.buffers(len(feeds), steps, gates)
            self._fill(buffers.inputs, feeds, steps)
            self._slab.gather(slots, buffers.states)
            self._graph.run(buffers)
        except Exception as error:
            if len(feeds) > 1 or steps > 1:
                return self._step_apart(feeds, steps, told)
            self._fail(
                feeds[0], StepFailed(_failure(feeds[0], "the model's graph failed on it")), error, told
            )
            return 0
        suspects = _rows_not_finite(buffers)
        if not suspects:
            return self._commit(feeds, slots, buffers, told)
        if len(feeds) > 1:
            # The sound rows again, without the others: what they get does not depend on the batch.
            sound = [feed for row, feed in enumerate(feeds) if row not in suspects]
            tokens = self._step(sound, steps, told) if sound else 0
            return tokens + sum(self._step([feeds[row]], steps, told) for row in sorted(suspects))
        if steps > 1:
            return self._step_apart(feeds, steps, told)
        message = _failure(feeds[0], "the model's outputs or states left the finite numbers")
        self._fail(feeds[0], NonFinite(message, position=self.position(feeds[0].slot)), None, told)
        return 0

    def _step_apart(self, feeds: Sequence[Feed], steps: int, told: Told) -> int:
        """Runs suspects alone; one that is alone already, token by token until it fails."""
        if len(feeds) > 1:
            return sum(self._step([feed], steps, told) for feed in feeds)
        for token in range(steps):
            if not self._step(feeds, 1, told):
                return token
        return steps

    def _fill(self, inputs: NDArray[np.generic], feeds: Sequence[Feed], steps: int) -> None:
        """Puts the next `steps` tokens or frames of each feed into the graph's input."""
        if self.manifest.input.kind == "values":
            for row, feed in enumerate(feeds):
                inputs[:, row] = feed.inputs[feed.applied : feed.applied + steps]
        elif steps == 1:
            inputs[0] = [feed.inputs[feed.applied] for feed in feeds]
        else:
            inputs[:] = np.array([feed.inputs[feed.applied : feed.applied + steps] for feed in feeds]).T

    def _commit(self, feeds: Sequence[Feed], slots: NDArray[np.int64], results: Buffers, told: Told) -> int:
        """Makes the answers, then puts states, positions and feeds on: what can fail comes first."""
        steps = results.steps
        positions = self._slab.positions.take(slots) + steps
        settled = settle(self.manifest, feeds, results, positions.tolist(), self._before)
        kept: dict[int, NDArray[np.float32]] = {}
        if settled.continued and not self._step_by_step:
            # Where steps depend on how they are cut, the head graph makes every prediction between calls.
            predictions = results.outputs[0][-1, settled.continued]
            kept = dict(zip(slots[settled.continued].tolist(), predictions, strict=True))

        self._slab.scatter(slots, results.states_next)
        self._slab.positions[slots] = positions
        for feed in feeds:
            feed.applied += steps
        self._scheduler.remove_all(settled.ended)
        if self._before:
            for slot in slots.tolist():
                self._before.pop(slot, None)
        self._before.update(kept)
        told += settled.told
        return steps * len(feeds)

    def _fail(self, feed: Feed, failure: CellstreamError, cause: Exception | None, told: Told) -> None:
        """Ends a feed with an error."""
        failure.__cause__ = cause
        self.withdraw(feed)
        told.append((feed, Progress(self.position(feed.slot), True, error=failure)))

    def _tell(self, told: Told) -> None:
        """Tells each feed its progress, whatever the others' `on_progress` raise."""
        interruption: BaseException | None = None
        for feed, progress in told:
            try:
                feed.on_progress(feed, progress)
            except BaseException as error:
                self._on_waiter_error(error)
                if not isinstance(error, Exception):
                    interruption = error
            if feed.finished:
                self.withdraw(feed)
        if interruption is not None:
            raise interruption

    def check_integrity(self) -> None:
        """Asserts what always holds between two turns."""
        self._slab.check_integrity()
        for slot, feed in self._scheduler.waiting.items():
            assert feed.slot == slot, f"a feed of slot {feed.slot} waits as one of {slot}"
            assert self._slab.taken[slot], f"a feed of slot {slot}, which nobody owns, waits"
            assert 0 <= feed.applied <= len(feed.inputs), f"a feed of slot {feed.slot} was applied too far"
            assert feed.applied < len(feed.inputs) or feed.sampling, (
                f"a feed of slot {feed.slot} waits for nothing"
            )
        for slot in self._before:
            assert slot in self._scheduler.waiting, f"a prediction of slot {slot} is kept for no feed"


def _special(feeds: Sequence[Feed]) -> list[Feed]:
    """Those that answer with more than the most likely tokens, or sample."""
    return [feed for feed in feeds if feed.answer.detailed or feed.sampling is not None]


def _slots(feeds: Sequence[Feed]) -> NDArray[np.int64]:
    return np.array([feed.slot for feed in feeds])


def _rows_not_finite(results: Buffers) -> set[int]:
    """The rows that have an output, or a state after the last step, that is not finite.

    A state that leaves the finite numbers in the middle of a call is seen at its end: what is computed from
    NaN or an infinity by sums and products, as a state from the one before it, is not finite either.
    """
    # One pass and no array of flags: half of what isfinite costs. A sum of squares is finite only if every
    # number is, and the other way round below 1e19. Unlike dot, vdot does not warn where it overflows.
    if math.isfinite(np.vdot(results.results, results.results)):
        return set()
    found = np.zeros(results.rows, dtype=bool)
    for array in results.outputs:
        found |= ~np.isfinite(array).all(axis=(0, *range(2, array.ndim)))
    for array in results.states_next:
        found |= ~np.isfinite(array).all(axis=tuple(range(1, array.ndim)))
    return set(np.flatnonzero(found).tolist())


def _failure(feed: Feed, what: str) -> str:
    return f"token {feed.applied} of the feed (from 0) was not applied: {what}"
