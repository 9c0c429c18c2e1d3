"""What is hidden from a network while it learns, so that it learns nothing by heart.

    of outputs     each number at each step by itself (Zaremba et al., 2014); or *locked*: one mask for all
                   steps of a window (variational dropout: Gal & Ghahramani, 2016)
    of embeddings  whole rows: a token is hidden wherever it stands in the window (Gal & Ghahramani, 2016)
    recurrent      hidden-to-hidden weights, one mask a window (DropConnect: AWD-LSTM, Merity et al., 2018)

What stays is scaled by 1 / (1 − share), so that a model which is not learning needs no other weights.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Dropout:
    """Shares that are hidden, each in [0, 1), beside the share between the layers in `StackConfig.dropout`.

    Attributes:
        embedding: Of the embedding's rows.
        recurrent: Of each layer's hidden-to-hidden weights.
        output: Of what the head sees.
        locked: Whether the masks between the layers and before the head stay for all steps of a window.
    """

    embedding: float = 0.0
    recurrent: float = 0.0
    output: float = 0.0
    locked: bool = False


def hide(x: Tensor, share: float, *, locked: bool) -> Tensor:
    """Hide a share of the numbers of some steps, [time, batch, units]; locked: the same ones at each step."""
    if not share or not locked:
        return nn.functional.dropout(x, share) if share else x
    kept = x.new_empty(1, *x.shape[1:]).bernoulli_(1 - share)
    return x * kept.div_(1 - share)


def hide_rows(weight: Tensor, share: float) -> Tensor:
    """Hide a share of the rows of an embedding, [vocabulary, embedding]."""
    if not share:
        return weight
    kept = weight.new_empty(len(weight), 1).bernoulli_(1 - share)
    return weight * kept.div_(1 - share)


def hide_weights(weight: Tensor, share: float) -> Tensor:
    """Hide a share of single weights."""
    return nn.functional.dropout(weight, share) if share else weight
