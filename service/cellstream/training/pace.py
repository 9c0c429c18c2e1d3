"""In which precision, and on how many threads, this machine learns fastest just now: a trial tells.

bfloat16 doubles the pace of an LSTM where the processor multiplies matrices in it; where it does not, it
costs time, or PyTorch has no LSTM in it at all. Two threads nearly double the pace on an idle machine, and
make it eight times slower where other processes share the cores, because each waits for the other at every
step. No table knows either.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from typing import Literal

import torch

from cellstream.cells.stack import FusedStack
from cellstream.cells.threads import threads_set
from cellstream.errors import RecipeInvalid
from cellstream.training.data import Window
from cellstream.training.learner import Learner
from cellstream.training.recipe import Device, Precision, Training

GAIN_MIN = 1.1
"""How many times faster bfloat16, or more threads, must be to be worth their price."""

UPDATES = 4
"""Timed updates of each trial, about a second for all trials of a small model."""


@dataclass(frozen=True)
class Pace:
    """How to learn.

    Attributes:
        precision: Of the forward and the backward run.
        threads: Of PyTorch, within one operation on the CPU.
        device: `cpu`, or `cuda`, which is a GPU.
    """

    precision: Precision
    threads: int
    device: Device = "cpu"

    def __str__(self) -> str:
        if self.device == "cuda":
            return f"{self.precision} on a GPU"
        return f"{self.precision} on {self.threads} thread{'s' if self.threads > 1 else ''}"


def choose_device(wanted: Literal["auto", "cpu", "cuda"]) -> Device:
    """Give a GPU where one is wanted, or is there and nothing else is wanted.

    Raises:
        RecipeInvalid: A GPU is wanted, and PyTorch finds none.
    """
    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise RecipeInvalid(
            "training.device: expected a GPU, PyTorch finds none; --set training.device=cpu does without."
        )
    return "cuda" if there and wanted != "cpu" else "cpu"


def choose_pace(model: FusedStack, training: Training, window: Window, device: Device = "cpu") -> Pace:
    """Give what the recipe says; what it leaves open is tried on a copy of the model.

    Args:
        model: What will learn, on its device; it is left as it is.
        training: The recipe's part.
        window: What to try on.
        device: Where the model is.

    Raises:
        RecipeInvalid: The recipe says bfloat16, and this processor cannot.
    """
    precisions: list[Precision] = [training.precision] if training.precision != "auto" else ["float32"]
    if training.precision == "bfloat16":
        check_bfloat16(model, window)
    elif training.precision == "auto" and runs_in_bfloat16(model, window):
        precisions.append("bfloat16")
    # Beside a GPU the processor's threads have nothing to share.
    cores = torch.get_num_threads() if device == "cpu" else 1
    threads = sorted({1, cores}) if training.threads is None else [training.threads]
    paces = [Pace(precision, count, device) for precision in precisions for count in threads]
    if len(paces) == 1:
        return paces[0]
    chosen, seconds = paces[0], _trial(model, training, window, paces[0])
    for pace in paces[1:]:
        tried = _trial(model, training, window, pace)
        if tried * GAIN_MIN < seconds:
            chosen, seconds = pace, tried
    return chosen


def check_bfloat16(model: FusedStack, window: Window) -> None:
    """Refuse what this machine cannot do.

    Raises:
        RecipeInvalid: PyTorch does not run the network in bfloat16 here.
    """
    if not runs_in_bfloat16(model, window):
        raise RecipeInvalid(
            "training.precision: bfloat16 is more than this machine can do: PyTorch has no "
            f"{model.config.cell} in it for this processor (x86 takes AVX-512). float32 and auto work "
            "everywhere: --set training.precision=auto"
        )


def runs_in_bfloat16(model: FusedStack, window: Window) -> bool:
    """Try one token, and leave the model and the dice as they were."""
    device = model.head.weight.device
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    inputs = torch.from_numpy(window.inputs[:1, :1])
    try:
        with (
            torch.random.fork_rng(devices=[]),
            torch.inference_mode(),
            torch.autocast("cpu", torch.bfloat16),
        ):
            model(inputs)
    except RuntimeError as error:
        if "primitive descriptor" not in str(error):  # oneDNN's words for what it has no code for
            raise
        return False
    return True


def _trial(model: FusedStack, training: Training, window: Window, pace: Pace) -> float:
    """Time some updates, in seconds; the first one only sets things up."""
    # Dropout in a trial must not change what comes after it.
    on_gpu = pace.device == "cuda"
    with (
        threads_set(pace.threads),
        torch.random.fork_rng(devices=[torch.cuda.current_device()] if on_gpu else []),
    ):
        learner = Learner(copy.deepcopy(model), training, pace.precision)
        learner.learn(window, training.learning_rate)
        begun = time.perf_counter()
        for _ in range(UPDATES):
            learner.learn(window, training.learning_rate * training.final_ratio)
        if on_gpu:
            torch.cuda.synchronize()  # what it was only asked to do counts too
        return time.perf_counter() - begun
