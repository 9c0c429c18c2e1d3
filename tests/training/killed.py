"""Trains in children of its own and kills them: `python killed.py RECIPE RUNS SEED`.

PyTorch is imported once; each try is a fork of this process, so that dozens of kills take seconds.
"""

from __future__ import annotations

import os
import random
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

import torch
from rich.console import Console

from cellstream.training import train
from cellstream.training.learner import Learner

torch.set_num_threads(1)  # a fork takes no threads along


@dataclass(frozen=True)
class Kill:
    """When a try is killed.

    Attributes:
        prepare: What the child does first, to be killed at a certain line.
        seconds: After which it is killed wherever it is; None: never.
    """

    prepare: Callable[[], None] = lambda: None
    seconds: float | None = None


def is_killed(recipe: Path, runs: Path, kill: Kill) -> bool:
    """Go on with the run in a child; say whether it was killed before its end."""
    child = os.fork()
    if not child:
        kill.prepare()
        with Path(os.devnull).open("w") as nowhere:
            train(recipe, runs_directory=runs, resume=True, console=Console(file=nowhere))
        os._exit(0)
    ended = os.pidfd_open(child)
    if kill.seconds is not None and not select.select([ended], [], [], kill.seconds)[0]:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.close(ended)
    assert status == 0 or os.WTERMSIG(status) == signal.SIGKILL, f"a try ended with status {status}"
    return status != 0


def at_a_call(owner: type, name: str, number: int, *, after: bool) -> None:
    """Have this process killed just before or just after a call of a function."""
    function, calls = getattr(owner, name), count(1)

    def watched(*arguments: object, **named: object) -> object:
        last = next(calls) == number
        if last and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments, **named)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, watched)


def main(recipe: Path, runs: Path, seed: int) -> None:
    """Train once without and once with kills; tell how many of them hit."""
    begun = time.perf_counter()
    assert not is_killed(recipe, runs / "whole", Kill())
    whole_seconds = time.perf_counter() - begun
    dice = random.Random(seed)

    def at(owner: type, name: str, calls: int) -> Kill:
        number, after = dice.randint(1, calls), dice.random() < 0.5
        return Kill(partial(at_a_call, owner, name, number, after=after))

    hits = 0
    for _ in range(ROUNDS):
        # Saves, checkpoints and the log come by rename, and what they replace goes by unlink.
        kills = at(Path, "replace", 12), at(Path, "unlink", 8), at(Learner, "learn", 12)
        for kill in (*kills, Kill(seconds=dice.random() * whole_seconds)):
            hits += is_killed(recipe, runs / "killed", kill)
    assert not is_killed(recipe, runs / "killed", Kill())
    sys.stdout.write(f"{hits}\n")


ROUNDS = 2
"""Of four kills each; towards the end they may come too late."""

if __name__ == "__main__":
    # Newer Pythons warn of forks beside threads; there are none here that a child would miss.
    warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*fork")
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
