"""What a model writes while it learns: the same dice each time, and none of training's."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from cellstream.cells.stack import FusedStack
from cellstream.text import Tokenizer

TOKENS = 400
"""Of a sample: some verses, a fraction of a second."""

TEMPERATURE = 0.7
"""Below 1: less of what the model itself holds for unlikely, so that a reader sees what it knows."""


def write_sample(model: FusedStack, tokenizer: Tokenizer, prompt: NDArray[np.int64]) -> str:
    """Let a model write.

    Args:
        model: What writes; back in its mode of before afterwards.
        tokenizer: Of its tokens.
        prompt: What it goes on from, int64 [tokens]; it is not part of the text.
    """
    dice = torch.Generator().manual_seed(0)
    device = model.head.weight.device
    training = model.training
    model.eval()
    written: list[int] = []
    with torch.inference_mode():
        trace = model(torch.from_numpy(prompt)[:, None].to(device))
        for _ in range(TOKENS):
            probabilities = (trace.prediction[-1, 0].double().cpu() / TEMPERATURE).softmax(dim=-1)
            written.append(int(torch.multinomial(probabilities, 1, generator=dice)))
            trace = model(torch.tensor([[written[-1]]], device=device), trace.states)
    model.train(training)
    decoder = tokenizer.decoder()
    return decoder.feed(written) + decoder.finish()
