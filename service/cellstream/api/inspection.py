"""What can be seen and done from outside a stream: SessionService and ModelService."""

from __future__ import annotations

from collections.abc import Callable

from cellstream.errors import PageTokenInvalid
from cellstream.sessions import Catalogue, Registry, Served, Session
from cellstream.settings import Settings
from cellstream.v1 import model_pb2, session_pb2

PAGE_SIZE_DEFAULT = 100


class Sessions:
    """Answers of SessionService."""

    def __init__(self, registry: Registry, settings: Settings, clock: Callable[[], float]) -> None:
        self._registry = registry
        self._settings = settings
        self._clock = clock

    def get(self, request: session_pb2.GetSessionRequest) -> session_pb2.GetSessionResponse:
        """One session by its id.

        Raises:
            SessionIdInvalid, SessionUnknown, SessionExpired, SessionClosed: There is none.
        """
        return session_pb2.GetSessionResponse(session=self._describe(self._registry.get(request.session_id)))

    def list(self, request: session_pb2.ListSessionsRequest) -> session_pb2.ListSessionsResponse:
        """A page of sessions, the oldest first; sessions made meanwhile come at the end, none comes twice.

        Raises:
            PageTokenInvalid: The token is not from an earlier page.
        """
        token = request.page_token
        if token and not (token.isascii() and token.isdecimal() and len(token) < 20):
            raise PageTokenInvalid("page_token is not from an earlier page; leave it empty for the first.")
        size = min(request.page_size or PAGE_SIZE_DEFAULT, self._settings.sessions_page_max)
        found = self._registry.page(int(token or "0"), size + 1)  # one more, to know whether this is the last
        page = found[:size]
        return session_pb2.ListSessionsResponse(
            sessions=[self._describe(session) for session in page],
            next_page_token=str(page[-1].serial) if len(found) > size else "",
        )

    def close(self, request: session_pb2.CloseSessionRequest) -> session_pb2.CloseSessionResponse:
        """End a session.

        Raises:
            SessionIdInvalid, SessionUnknown, SessionExpired, SessionClosed: There is none.
        """
        return session_pb2.CloseSessionResponse(position=self._registry.end(request.session_id))

    def _describe(self, session: Session) -> session_pb2.Session:
        described = session_pb2.Session(
            session_hash=self._registry.hash(session),
            model=session.served.name,
            version=session.served.version,
            position=session.position,
            held=session.handle is not None,
        )
        described.idle.FromNanoseconds(max(0, int((self._clock() - session.fed_at) * 1e9)))
        return described


class Models:
    """Answers of ModelService."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    def list(self, _request: model_pb2.ListModelsRequest) -> model_pb2.ListModelsResponse:
        """All models and versions, cards left out."""
        return model_pb2.ListModelsResponse(models=[self._describe(served) for served in self._catalogue])

    def get(self, request: model_pb2.GetModelRequest) -> model_pb2.GetModelResponse:
        """One version of a model, with its card.

        Raises:
            ModelUnknown, VersionUnknown: There is none.
        """
        served = self._catalogue.find(request.name, request.version)
        model = self._describe(served)
        model.card = served.card
        return model_pb2.GetModelResponse(model=model)

    def _describe(self, served: Served) -> model_pb2.Model:
        manifest = served.manifest
        kind = {"tokens": model_pb2.INPUT_KIND_TOKENS, "values": model_pb2.INPUT_KIND_VALUES}[
            manifest.input.kind
        ]
        numerics = {"exact": model_pb2.NUMERICS_EXACT, "fast": model_pb2.NUMERICS_FAST}[
            served.engine.numerics
        ]
        return model_pb2.Model(
            name=served.name,
            version=served.version,
            is_default=self._catalogue.is_default(served),
            input_kind=kind,
            vocabulary_size=manifest.input.vocabulary_size or 0,
            features=manifest.input.features or 0,
            states=[
                model_pb2.StateTensor(name=state.name, dtype=state.dtype, shape=state.shape)
                for state in manifest.states
            ],
            gates=[gate.name for gate in manifest.gates],
            numerics_digest=served.engine.numerics_digest,
            manifest_digest=served.manifest_digest,
            metrics=manifest.metrics,
            numerics=numerics,
        )
