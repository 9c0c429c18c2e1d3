"""Generate: tokens that a lone session would make, sent as they are made, each of them absorbed.

Two models: `tiny`, whose random weights make any byte, and `chain`, whose weights are set so that its most
likely next byte goes round in `ROUND`. So what it says is known beforehand, characters of several bytes too.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from cellstream.cells.config import StackConfig
from cellstream.export.writing import write_version
from cellstream.text import ByteTokenizer
from cellstream.v1 import prediction_pb2 as pb
from cellstream.v1 import prediction_pb2_grpc, session_pb2

ROUND = "né€😀."
"""Eleven bytes, all different; characters of one to four of them."""


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with `chain`: h is the last byte, one-hot, and the head is the table of what follows."""
    config = StackConfig(
        cell="rnn",
        layers=1,
        hidden_size=256,
        input="tokens",
        embedding_size=256,
        vocabulary_size=256,
        features=None,
    )
    weights = {key: np.zeros(shape, np.float32) for key, shape in config.weight_shapes().items()}
    weights["embedding.weight"][:] = np.eye(256)
    weights["layers.0.weight_ih"][:] = 20 * np.eye(256)
    spoken = ROUND.encode()
    for byte, following in zip(spoken, spoken[1:] + spoken[:1], strict=True):
        weights["head.weight"][following, byte] = 30
    return write_models(tmp_path_factory.mktemp("chain"), config, weights)


def write_models(models: Path, config: StackConfig, weights: dict[str, np.ndarray]) -> Path:
    """Write version 1 of `chain`, over bytes."""
    tokenizer = ByteTokenizer().to_json()
    write_version(models, config, weights, name="chain", version=1, tokenizer_json=tokenizer)
    return models


@pytest.fixture
def lone(tiny: Path, alone: Any) -> Any:
    """The oracle of `tiny`."""
    return alone(tiny / "tiny" / "1")


def made(responses: list[pb.GenerateResponse]) -> list[int]:
    """All tokens that were sent."""
    return [token for response in responses for token in response.ids]


def said(responses: list[pb.GenerateResponse]) -> str:
    """All text that was sent."""
    return "".join(response.text for response in responses)


def greedy(oracle: Any, prompt: bytes, count: int) -> list[int]:
    """The most likely token after the prompt, after that, and so on."""
    history = list(prompt)
    for _ in range(count):
        history.append(int(oracle.after(history).log_probabilities.argmax()))
    return history[len(prompt) :]


async def test_greedy_is_a_loop_of_argmax(front: Any, lone: Any) -> None:
    """Temperature 0: what a plain loop over the lone session makes; each message but the last goes on."""
    responses = await front.generate(text="ROMEO:", max_tokens=40, temperature=0, seed=9)
    assert made(responses) == greedy(lone, b"ROMEO:", 40)
    assert said(responses) == bytes(made(responses)).decode(errors="replace")
    assert responses[-1].position == 46
    assert [response.finish_reason for response in responses[:-1]] == [0] * (len(responses) - 1)
    assert responses[-1].finish_reason == pb.FINISH_REASON_LENGTH
    assert responses[0].seed == 9
    assert len(front.registry) == 0, "a session for this call alone"


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}])
async def test_narrowed_to_one_it_is_greedy(front: Any, lone: Any, narrow: dict[str, float]) -> None:
    """Each setting taken to its end leaves the most likely token alone."""
    responses = await front.generate(text="ROMEO:", max_tokens=20, **narrow)
    assert made(responses) == greedy(lone, b"ROMEO:", 20)


@pytest.mark.parametrize(("top_k", "top_p"), [(3, 1.0), (0, 0.2), (4, 0.5)])
async def test_drawn_are_only_those_that_are_allowed(front: Any, lone: Any, top_k: int, top_p: float) -> None:
    """Each token is among the top_k most likely, and among the fewest that hold top_p."""
    tokens = made(await front.generate(text="ROMEO:", max_tokens=60, top_k=top_k, top_p=top_p, seed=3))
    history = list(b"ROMEO:")
    best = 0
    for token in tokens:
        found = lone.after(history).log_probabilities
        order = np.argsort(-found, kind="stable")
        share = np.cumsum(np.exp(found[order].astype(float)))
        nucleus = int(np.searchsorted(share, top_p)) + 1 if top_p < 1 else 256
        allowed = order[: min(top_k or 256, nucleus)]
        assert token in allowed
        best += token == order[0]
        history.append(token)
    assert best < len(tokens), "and it is not always the most likely"


async def test_the_same_seed_gives_the_same_tokens_whatever_else_is_served(front: Any) -> None:
    """Alone; again; while others feed and generate; from a prompt absorbed in pieces: always the same."""
    request: dict[str, Any] = {"text": "O Romeo, Romeo!", "max_tokens": 50, "seed": 2**64 - 1}
    alone_made = made(await front.generate(**request))
    assert made(await front.generate(**request)) == alone_made
    others = [front.prediction.Generate(pb.GenerateRequest(text=f"{n}", max_tokens=60)) for n in range(5)]
    async with front.talk() as talk:
        await talk.say(opens=[pb.Open()], feeds=[pb.Feed(id=n, text="noise" * 40) for n in range(5)])
        assert made(await front.generate(**request)) == alone_made
        for other in others:
            assert len(made([response async for response in other])) == 60
        await talk.result(4)
        await talk.open(1, "juliet")
        await talk.feed("O Romeo", handle=1, id=5)
        rest = {**request, "text": ", Romeo!", "session_id": "juliet", "position": 7}
        assert made(await front.generate(**rest)) == alone_made
        await talk.open(2, "nurse")
        await talk.feed("O Romeo, Romeo!", handle=2, id=6)
        rest = {**request, "session_id": "nurse", "position": 15}
        del rest["text"]
        assert made(await front.generate(**rest)) == alone_made, "nothing absorbed: drawn from the head alone"
    assert made(await front.generate(**{**request, "seed": 1})) != alone_made


async def test_a_seed_is_drawn_and_told(front: Any) -> None:
    """Whoever sends none can still have the same again."""
    first = await front.generate(text="To be", max_tokens=30)
    second = await front.generate(text="To be", max_tokens=30)
    assert first[0].seed != second[0].seed
    assert all(response.seed == 0 for response in first[1:])
    assert made(await front.generate(text="To be", max_tokens=30, seed=first[0].seed)) == made(first)


async def test_a_generation_goes_on_in_pieces(front: Any) -> None:
    """Draws depend on seed and position alone, so 20 + 30 tokens of a named session are its 50."""
    whole = made(await front.generate(text="To be", max_tokens=50, seed=5))
    first = await front.generate(session_id="hamlet", text="To be", max_tokens=20, seed=5)
    rest = await front.generate(session_id="hamlet", mode=pb.MODE_ATTACH, max_tokens=30, seed=5, position=25)
    assert made(first) + made(rest) == whole
    assert rest[-1].position == 55


async def test_what_was_made_has_been_absorbed(front: Any, lone: Any) -> None:
    """A named session goes on, after a generation, from all that it said."""
    responses = await front.generate(session_id="hamlet", text="To be", max_tokens=20, seed=5)
    history = list(b"To be") + made(responses)
    async with front.talk() as talk:
        opened = await talk.open(0, "hamlet", mode=pb.MODE_ATTACH)
        assert opened.position == 25
        await talk.feed("x", id=1, answer=pb.Answer(log_probabilities=True, score=True))
        expected = lone.after([*history, ord("x")]).log_probabilities
        np.testing.assert_array_equal(talk.arrays(1)["log_probabilities"][0], expected)
        score = np.float32(talk.results(1)[0].predictions.scores[0])
        assert score == lone.after(history).log_probabilities[ord("x")]


async def test_characters_are_never_cut(serve: Any, chain: Path) -> None:
    """Bytes are made one by one; text comes only as whole characters, with or after their last byte."""
    front = await serve(chain)
    brake = front.brake()
    generation = front.prediction.Generate(pb.GenerateRequest(text=".", max_tokens=33, temperature=0))
    text, ids = "", []
    brake.hold()
    await front.until(lambda: front.engine().waiting == 1)
    for turn in range(33):
        await brake.turns(2 if turn == 0 else 1)  # the first absorbs the prompt
        if turn == 32:
            brake.release()
        response = await generation.read()
        text += response.text
        ids += response.ids
        assert "\ufffd" not in response.text
        assert len(ids) == turn + 1, "each is sent as it is made"
        assert text == bytes(ids).decode(errors="ignore"), "as soon as its last byte is there"
    assert text == ROUND * 3
    generation.cancel()


async def test_a_character_that_will_never_be_whole_is_told_as_such(serve: Any, chain: Path) -> None:
    """max_tokens fall in the middle of one: the replacement character, as every decoder has it."""
    front = await serve(chain)
    responses = await front.generate(text=".", max_tokens=5, temperature=0)
    assert said(responses) == "né\ufffd"
    assert bytes(made(responses)) == "né€".encode()[:5]


@pytest.mark.parametrize(
    ("stop", "text", "absorbed"),
    [
        (["€"], "né", "né€"),  # several tokens
        (["n"], "", "n"),  # at once
        ([".n"], "né€😀", "né€😀.n"),  # across characters
        (["😀.né€"], "né€", "né€😀.né€"),  # long
        (["zzz", "€😀", "é€😀."], "né", "né€😀"),  # whichever is whole first
    ],
)
async def test_stop_texts_are_absorbed_and_not_sent(
    serve: Any, chain: Path, alone: Any, stop: list[str], text: str, absorbed: str
) -> None:
    """Nothing of the stop text is sent; the session stands right behind it."""
    front = await serve(chain)
    responses = await front.generate(session_id="alice", text=".", max_tokens=100, temperature=0, stop=stop)
    assert said(responses) == text
    assert bytes(made(responses)) == text.encode()
    assert responses[-1].finish_reason == pb.FINISH_REASON_STOP
    assert responses[-1].position == 1 + len(absorbed.encode())
    history = list(("." + absorbed).encode())
    async with front.talk() as talk:
        opened = await talk.open(0, "alice")
        assert opened.position == len(history)
        await talk.feed("n", id=1, answer=pb.Answer(log_probabilities=True))
        expected = alone(chain / "chain" / "1").after([*history, ord("n")]).log_probabilities
        np.testing.assert_array_equal(talk.arrays(1)["log_probabilities"][0], expected)


async def test_what_only_looks_like_a_stop_text_is_sent_in_the_end(serve: Any, chain: Path) -> None:
    """It is held back while it may become one, and no longer; in the end with all the rest."""
    front = await serve(chain)
    brake = front.brake()
    request = pb.GenerateRequest(text=".", max_tokens=11, temperature=0, stop=["né€x"])
    generation = front.prediction.Generate(request)
    brake.hold()
    await front.until(lambda: front.engine().waiting == 1)
    await brake.turns(7)  # the prompt and né€, which is six bytes
    await brake.turns(4)  # and 😀: now it is known
    response = await generation.read()
    assert response.text == "né€😀"
    assert bytes(response.ids) == "né€😀".encode()
    assert response.seed, "the seed is in the first message, whenever that is"
    brake.release()
    rest = await generation.read()
    assert (rest.text, rest.finish_reason) == (".", pb.FINISH_REASON_LENGTH)
    assert await generation.read() is grpc.aio.EOF
    held = await front.generate(text=".", max_tokens=6, temperature=0, stop=["né€x"])
    assert said(held) == "né€", "the end came first"


async def test_a_prompt_may_end_in_the_stop_text(serve: Any, chain: Path) -> None:
    """Only what is made can stop it."""
    front = await serve(chain)
    responses = await front.generate(text="n", max_tokens=10, temperature=0, stop=["né"])
    assert said(responses) == "é€😀."
    assert responses[-1].finish_reason == pb.FINISH_REASON_LENGTH


async def test_characters_as_tokens(serve: Any, many: Path, alone: Any) -> None:
    """A model of 40 characters generates those, by the same rules."""
    front = await serve(many, default_model="tiny")
    responses = await front.generate(model="letters", text="!", max_tokens=12, temperature=0)
    tokens = greedy(alone(many / "letters" / "1"), bytes([1]), 12)
    assert made(responses) == tokens
    assert said(responses) == "".join(chr(ord(" ") + token) for token in tokens)


async def test_it_is_the_sessions_writer_as_an_open_is(front: Any) -> None:
    """A stream that holds the session is told; after the generation the session is nobody's."""
    async with front.talk() as talk:
        await talk.open(0, "alice")
        await talk.feed("abc", id=1)
        responses = await front.generate(session_id="alice", max_tokens=3)
        assert responses[-1].position == 6
        event = await talk.event(0)
        assert (event.cause, event.position) == (pb.CAUSE_TAKEN_OVER, 3)
        request = session_pb2.GetSessionRequest(session_id="alice")
        session = (await front.session.GetSession(request)).session
        assert (session.position, session.held) == (6, False)


async def test_what_was_made_before_a_take_over_is_sent(serve: Any, chain: Path) -> None:
    """What was held back as a possible stop text too: it has been absorbed, the new writer goes on there."""
    front = await serve(chain)
    brake = front.brake()
    generation = front.prediction.Generate(
        pb.GenerateRequest(session_id="alice", text=".", max_tokens=99, temperature=0, stop=["né€x"])
    )
    brake.hold()
    await front.until(lambda: front.engine().waiting == 1)
    await brake.turns(7)
    async with front.talk() as talk:
        assert (await talk.open(0, "alice")).position == 7
        brake.release()
        response = await generation.read()
        assert (response.text, bytes(response.ids), response.position) == ("né€", "né€".encode(), 7)

        async def rest() -> None:
            while await generation.read() is not grpc.aio.EOF:
                pass

        assert (await front.failure(rest())).reason == "TAKEN_OVER"


async def test_a_cancelled_generation_leaves_its_session_at_a_known_position(serve: Any, chain: Path) -> None:
    """The tokens up to there are those that it would have made; the next client goes on from them."""
    front = await serve(chain)
    brake = front.brake()
    generation = front.prediction.Generate(
        pb.GenerateRequest(session_id="alice", text=".", max_tokens=99, temperature=0)
    )
    brake.hold()
    await front.until(lambda: front.engine().waiting == 1)
    await brake.turns(6)
    generation.cancel()
    await front.until(lambda: not front.registry.streams)
    brake.release()
    async with front.talk() as talk:
        opened = await talk.open(0, "alice", mode=pb.MODE_ATTACH)
        assert opened.position == 6, "the prompt, and five bytes"
        result = await talk.feed(ids=["né€".encode()[5]], id=1, position=6)
        assert result.predictions.top_ids[0] == "😀".encode()[0]


async def test_a_failed_generation_leaves_a_named_session_as_it_was(front: Any) -> None:
    """A token out of range is refused whole; the session is let go of, at its position."""
    await front.generate(session_id="alice", text="abc", max_tokens=2)
    error = await front.failure(
        front.generate(session_id="alice", tokens=pb.Tokens(ids=[1, 256]), max_tokens=2)
    )
    assert error.reason == "TOKEN_OUT_OF_RANGE"
    request = session_pb2.GetSessionRequest(session_id="alice")
    session = (await front.session.GetSession(request)).session
    assert (session.position, session.held) == (5, False)


async def test_a_client_that_does_not_read_stops_its_generation(serve: Any) -> None:
    """What is made waits up to the stream's bound; then nothing more is made, and others are served."""
    bound = 4 * 1024
    front = await serve(generation_outbox_bytes_max=bound)
    async with grpc.aio.insecure_channel(front.running.target, front.small_window) as channel:
        stub = prediction_pb2_grpc.PredictionServiceStub(channel)
        call = stub.Generate(pb.GenerateRequest(text="a", max_tokens=12_000, seed=1))
        await front.until(lambda: any(stream.paused for stream in front.registry.streams))
        (stream,) = front.registry.streams
        assert front.engine().waiting == 0
        assert stream.listener._flow.unsent_bytes < bound + 64 * 32, "the bound, and what one call may add"
        assert [piece.position for piece in await front.generate(text="b", max_tokens=5, seed=1)][-1] == 6
        ids = [token async for response in call for token in response.ids]
        assert len(ids) == 12_000
    alone = await front.generate(text="a", max_tokens=12_000, seed=1)
    assert [token for response in alone for token in response.ids] == ids


async def test_all_streams_share_one_bound(serve: Any) -> None:
    """Above it no stream has more than its share, so many that do not read take little more than one."""
    total = 16 * 1024
    front = await serve(buffered_bytes_max=total)
    async with AsyncExitStack() as stack:
        for number in range(8):
            channel = await stack.enter_async_context(
                grpc.aio.insecure_channel(front.running.target, front.small_window)
            )
            stub = prediction_pb2_grpc.PredictionServiceStub(channel)
            call = stub.Generate(pb.GenerateRequest(text="a", max_tokens=12_000, seed=number))
            stack.callback(call.cancel)
        await front.until(
            lambda: len(front.registry.streams) == 8 and all(one.paused for one in front.registry.streams)
        )
        unsent = [stream.listener._flow.unsent_bytes for stream in front.registry.streams]
        assert sum(unsent) <= 2 * total + 8 * 64 * 32
        assert [piece.position for piece in await front.generate(text="b", max_tokens=5, seed=1)][-1] == 6
    await front.until(lambda: not front.registry.streams)
