"""The asynchronous client and its blocking twin; `cellstream` itself shows what of it is public."""

from cellstream.client.blocking import (
    BlockingClient,
    BlockingGeneration,
    BlockingPending,
    BlockingSession,
)
from cellstream.client.client import Client
from cellstream.client.feeds import AnswerOptions, Input, Want
from cellstream.client.generation import FinishReason, Generation, Piece, SamplingOptions
from cellstream.client.inventory import Health, ModelInfo, SessionInfo, StateInfo
from cellstream.client.pending import Pending
from cellstream.client.reply import Reply
from cellstream.client.session import Ending, Mode, Session
from cellstream.client.settings import ClientSettings
from cellstream.client.tls import TlsOptions

__all__ = [
    "AnswerOptions",
    "BlockingClient",
    "BlockingGeneration",
    "BlockingPending",
    "BlockingSession",
    "Client",
    "ClientSettings",
    "Ending",
    "FinishReason",
    "Generation",
    "Health",
    "Input",
    "Mode",
    "ModelInfo",
    "Pending",
    "Piece",
    "Reply",
    "SamplingOptions",
    "Session",
    "SessionInfo",
    "StateInfo",
    "TlsOptions",
    "Want",
]
