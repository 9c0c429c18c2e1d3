"""Everything that can go wrong, as one tree.

A class answers "whose fault, and what now?"; its `reason` is the same word in the code, on the wire
(`google.rpc.ErrorInfo.reason`), in metrics and in the documentation. This module knows nothing of gRPC:
`api/status.py` holds the table from reason to status code, and the client comes back by `reason`.

    CellstreamError
    ├── RequestError     the request is wrong, and will be wrong again: change it
    ├── SessionError     the session is not what the caller believed: look at its position, then decide
    ├── CapacityError    the server cannot now: wait `retry_after_seconds`, then try again
    ├── ServerError      the server's own fault: report it, with its id
    ├── ConnectionLost   the connection broke: open again with ATTACH and compare positions
    └── SetupError       something cannot be started, trained or exported; never on the wire
"""

from __future__ import annotations

import secrets
from typing import ClassVar


class CellstreamError(Exception):
    """Base of all our errors.

    Args:
        message: What was wrong, what was expected, and what to do.
        **values: The facts behind the message (positions, limits, names); as strings they travel
            in `ErrorInfo.metadata`.
    """

    reason: ClassVar[str] = ""

    def __init__(self, message: str, **values: object) -> None:
        super().__init__(message)
        self.message = message
        self.values: dict[str, str] = {name: str(value) for name, value in values.items()}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.reason}: {self.message}>"


# ---------------------------------------------------------------- the request is wrong


class RequestError(CellstreamError):
    """The request is wrong and will be wrong again."""


class MalformedMessage(RequestError):
    """The bytes are not a message of this rpc."""

    reason = "MALFORMED_MESSAGE"


class MessageTooLarge(RequestError):
    """The message has more bytes, or more items, than the server takes."""

    reason = "MESSAGE_TOO_LARGE"


class HandleInUse(RequestError):
    """An Open names a handle that this stream still uses."""

    reason = "HANDLE_IN_USE"


class HandleUnknown(RequestError):
    """A feed, reset or close names a handle that this stream does not use."""

    reason = "HANDLE_UNKNOWN"


class SessionIdInvalid(RequestError):
    """A session id is empty where one is needed, or too long."""

    reason = "SESSION_ID_INVALID"


class ModelUnknown(RequestError):
    """No model of that name is served."""

    reason = "MODEL_UNKNOWN"


class VersionUnknown(RequestError):
    """The model has no such version."""

    reason = "VERSION_UNKNOWN"


class ModelMismatch(RequestError):
    """The session exists, and another model or version serves it."""

    reason = "MODEL_MISMATCH"


class FeedEmpty(RequestError):
    """A feed carries no token, frame or text."""

    reason = "FEED_EMPTY"


class FeedTooLong(RequestError):
    """A feed carries more tokens or frames than the server takes in one."""

    reason = "FEED_TOO_LONG"


class TokenOutOfRange(RequestError):
    """A token id is not in the model's vocabulary."""

    reason = "TOKEN_OUT_OF_RANGE"


class TextNotEncodable(RequestError):
    """The model's tokeniser has no tokens for this text."""

    reason = "TEXT_NOT_ENCODABLE"


class InputKindMismatch(RequestError):
    """Tokens or text for a model of values, or values for a model of tokens."""

    reason = "INPUT_KIND_MISMATCH"


class ValuesMisshapen(RequestError):
    """The bytes of a feed of values are no whole number of frames."""

    reason = "VALUES_MISSHAPEN"


class ValuesNotFinite(RequestError):
    """A feed of values holds NaN or an infinity."""

    reason = "VALUES_NOT_FINITE"


class AnswerUnsupported(RequestError):
    """The answer asked for is not one that this model can give."""

    reason = "ANSWER_UNSUPPORTED"


class PromptEmpty(RequestError):
    """Nothing to generate from: no prompt, and the session has absorbed nothing."""

    reason = "PROMPT_EMPTY"


class GenerationInvalid(RequestError):
    """A generation's settings (temperature, top_p, max_tokens, stop) are out of range."""

    reason = "GENERATION_INVALID"


class PageTokenInvalid(RequestError):
    """A page token that this server did not make."""

    reason = "PAGE_TOKEN_INVALID"


# ---------------------------------------------------------------- the session is not what was believed


class SessionError(CellstreamError):
    """The session is not what the caller believed."""


class SessionUnknown(SessionError):
    """No session of that id exists, and none is remembered."""

    reason = "SESSION_UNKNOWN"


class SessionExpired(SessionError):
    """The session was idle too long and is gone."""

    reason = "SESSION_EXPIRED"


class SessionClosed(SessionError):
    """The session was closed and is gone."""

    reason = "SESSION_CLOSED"


class SessionExists(SessionError):
    """The session should have been created, and exists."""

    reason = "SESSION_EXISTS"


class TakenOver(SessionError):
    """Another stream, or another handle, became the session's writer before this feed was applied."""

    reason = "TAKEN_OVER"


class PositionMismatch(SessionError):
    """The session has absorbed another number of tokens than the caller holds; nothing was applied."""

    reason = "POSITION_MISMATCH"


class FeedAfterFailure(SessionError):
    """An earlier feed of this handle failed, and this one does not say from which position it goes on."""

    reason = "FEED_AFTER_FAILURE"


class NonFinite(SessionError):
    """The model's outputs or states left the finite numbers; the step was not committed."""

    reason = "NON_FINITE"


# ---------------------------------------------------------------- the server cannot now


class CapacityError(CellstreamError):
    """The server cannot now; `retry_after_seconds` later it may."""

    @property
    def retry_after_seconds(self) -> float:
        """How long to wait before the next try, in seconds."""
        return float(self.values.get("retry_after_seconds", "1"))


class TooManyStreams(CapacityError):
    """All streams that the server takes are open."""

    reason = "TOO_MANY_STREAMS"


class TooManyHandles(CapacityError):
    """All handles that one stream may use are in use."""

    reason = "TOO_MANY_HANDLES"


class TooManySessions(CapacityError):
    """No slot is free for a new session; none is taken from another."""

    reason = "TOO_MANY_SESSIONS"


class QueueTimeout(CapacityError):
    """The feed waited its longest and its first token was not applied."""

    reason = "QUEUE_TIMEOUT"


class Draining(CapacityError):
    """The server is going away; positions are final."""

    reason = "DRAINING"


# ---------------------------------------------------------------- the server's own fault


class ServerError(CellstreamError):
    """The server's own fault."""


class StepFailed(ServerError):
    """The model's graph raised on this feed; the step was not committed."""

    reason = "STEP_FAILED"


class InternalError(ServerError):
    """What nobody foresaw; the log has the details under the same id."""

    reason = "INTERNAL"

    @staticmethod
    def new_id() -> str:
        """An id by which the log is searched."""
        return secrets.token_hex(8)

    @classmethod
    def with_new_id(cls) -> InternalError:
        """Make one with an id of its own, in `values["error_id"]`, for the log."""
        error_id = cls.new_id()
        return cls(
            f"the server made a mistake; its operator finds the details in the log under {error_id}.",
            error_id=error_id,
        )


# ---------------------------------------------------------------- the connection broke


class ConnectionLost(CellstreamError):
    """The connection broke, or the server cannot be reached; what was applied, only the position tells."""

    reason = "CONNECTION_LOST"


# ---------------------------------------------------------------- never on the wire


class SetupError(CellstreamError):
    """Something cannot be started, trained or exported."""

    reason = "SETUP"


class ExtraMissing(SetupError):
    """A command needs an extra that is not installed; the message says which `pip install`."""

    reason = "EXTRA_MISSING"


class SettingsInvalid(SetupError):
    """A setting has an impossible value, or an unknown name."""

    reason = "SETTINGS_INVALID"


class PortInUse(SetupError):
    """Something listens on the port already."""

    reason = "PORT_IN_USE"


class RecipeInvalid(SetupError):
    """A training recipe has an impossible value, or an unknown name."""

    reason = "RECIPE_INVALID"


class TrainingFailed(SetupError):
    """Training cannot go on: its loss is not finite, its data are missing, its disk is full."""

    reason = "TRAINING_FAILED"


class CheckpointInvalid(SetupError):
    """A checkpoint of training is not whole, or not one that this version reads."""

    reason = "CHECKPOINT_INVALID"


class ExportUnproven(SetupError):
    """The exported graph does not do what the PyTorch model does; nothing was written."""

    reason = "EXPORT_UNPROVEN"


class RepositoryError(SetupError):
    """A model on disk cannot be served."""

    reason = "REPOSITORY"


class ModelFileMissing(RepositoryError):
    """A file that the manifest names, or the manifest itself, is not there."""

    reason = "MODEL_FILE_MISSING"


class ManifestInvalid(RepositoryError):
    """The manifest is not one that this version reads."""

    reason = "MANIFEST_INVALID"


class TokenizerInvalid(RepositoryError):
    """A tokeniser's file is not one that this version reads."""

    reason = "TOKENIZER_INVALID"


class DigestMismatch(RepositoryError):
    """A file is not the one that the manifest was written for."""

    reason = "DIGEST_MISMATCH"


class SignatureMismatch(RepositoryError):
    """The graph's inputs and outputs are not those that the manifest names."""

    reason = "SIGNATURE_MISMATCH"


def _tree(base: type[CellstreamError]) -> list[type[CellstreamError]]:
    return [kind for child in base.__subclasses__() for kind in (child, *_tree(child))]


BY_REASON: dict[str, type[CellstreamError]] = {
    kind.reason: kind for kind in _tree(CellstreamError) if kind.reason
}
"""Every concrete class by its reason."""
