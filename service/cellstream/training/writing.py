"""What a model writes while it learns: the same dice each time, and none of training's."""

from __future__ import annotations

import torch

from cellstream.cells.stack import FusedStack
from cellstream.text import Tokenizer

TOKENS = 240
"""Of a sample: some verses, a fifth of a second."""

TEMPERATURE = 0.7
"""Below 1: less of what the model itself holds for unlikely, so that a reader sees what it knows."""


def write_sample(model: FusedStack, tokenizer: Tokenizer, first: int, tokens: int = TOKENS) -> str:
    """Let a model write.

    Args:
        model: What writes; back in its mode of before afterwards.
        tokenizer: Of its tokens.
        first: The token that it goes on from; it is not part of the text.
        tokens: How many it writes.
    """
    dice = torch.Generator().manual_seed(0)
    device = model.head.weight.device
    training = model.training
    model.eval()
    token, states, written = first, None, []
    with torch.inference_mode():
        for _ in range(tokens):
            trace = model(torch.tensor([[token]], device=device), states)
            states = trace.states
            probabilities = (trace.prediction[0, 0].double().cpu() / TEMPERATURE).softmax(dim=-1)
            token = int(torch.multinomial(probabilities, 1, generator=dice))
            written.append(token)
    model.train(training)
    decoder = tokenizer.decoder()
    return decoder.feed(written) + decoder.finish()
