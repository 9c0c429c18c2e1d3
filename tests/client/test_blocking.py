import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cellstream import BlockingClient, ConnectionLost, Health, PromptEmpty, SessionUnknown, TokenOutOfRange


@pytest.fixture(scope="module")
def target(tiny: Path) -> Iterator[str]:
    """A server in another process: this one's threads wait, and could not serve."""
    code = """
import asyncio, pathlib, sys
from cellstream.testing import running_server

async def serve():
    async with running_server(pathlib.Path(sys.argv[1])) as server:
        print(server.target, file=sys.stderr, flush=True)
        await asyncio.Event().wait()

asyncio.run(serve())
"""
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tiny)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        try:
            yield next(line for line in process.stderr if line.startswith("127.0.0.1:")).strip()
        finally:
            process.kill()


@pytest.fixture
def client(target: str) -> Iterator[BlockingClient]:
    """A blocking client of it."""
    with BlockingClient(target) as connected:
        yield connected


def test_the_same_conversation_without_an_event_loop(client: BlockingClient) -> None:
    """Everything that the asynchronous client does, in plain code."""
    assert client.health() is Health.SERVING
    assert [model.name for model in client.models()] == ["tiny"]
    assert client.model("tiny").vocabulary_size == 256
    with client.session("alice", top_k=3) as session:
        assert (session.id, session.model, session.version, session.created) == ("alice", "tiny", "1", True)
        reply = session.predict("To be")
        assert (reply.position, session.position, reply.top_ids.shape) == (5, 5, (1, 3))
        pending = [session.send(letter) for letter in ", or"]
        assert [one.result().position for one in pending] == [6, 7, 8, 9]
        assert all(one.done() for one in pending)
        assert sum(part.steps for part in session.predict_in_parts(" not", want="every_step")) == 4
        with pytest.raises(TokenOutOfRange):
            session.predict([999])
        session.reset()
        assert session.position == 0
    assert [info.held for info in client.sessions()] == [False]
    assert client.get_session("alice").position == 0
    with client.session("alice") as session:
        assert not session.created
        assert session.reattach() == 0
        session.close()
    with client.session("alice") as session:
        assert session.previous is not None
        assert session.previous.cause == "closed"
    assert client.close_session("alice") == 0


def test_generation_is_an_iterator(client: BlockingClient) -> None:
    """Broken out of, it is cancelled; read to its end, it has said why."""
    generation = client.generate("ROMEO:", max_tokens=30, seed=1)
    text = "".join(piece.text for piece in generation)
    assert (generation.finish_reason, generation.seed, generation.position) == ("length", 1, 36)
    assert "".join(piece.text for piece in client.generate("ROMEO:", max_tokens=30, seed=1)) == text
    for _ in client.generate("a", max_tokens=60_000):
        break
    with client.generate("a", max_tokens=60_000) as broken_off:
        next(broken_off)
    with pytest.raises(StopIteration):
        next(broken_off)
    with pytest.raises(PromptEmpty):
        next(client.generate())
    with client.session("bob") as session:
        assert sum(len(piece.ids) for piece in session.generate("a", max_tokens=7)) == 7
        assert session.predict("b").position == 9
        session.close()


def test_threads_share_a_client(client: BlockingClient) -> None:
    """One client, one stream, many threads: each session's answers are those it gets alone."""
    with client.session() as session:
        alone = [session.predict([token]).top_log_probabilities for token in range(20)]

    def work(_: int) -> list[NDArray[np.float32]]:
        with client.session() as own:
            return [own.predict([token]).top_log_probabilities for token in range(20)]

    with ThreadPoolExecutor(8) as threads:
        for together in threads.map(work, range(8)):
            np.testing.assert_array_equal(together, alone)


def test_closing_twice_is_once_and_later_calls_say_so(target: str) -> None:
    """Nothing hangs on a loop that is gone."""
    client = BlockingClient(target)
    session = client.session("nobody", mode="attach")
    with pytest.raises(SessionUnknown):
        session.open()
    client.close()
    client.close()
    for call in (client.models, session.open, client.generate("a").__next__):
        with pytest.raises(ConnectionLost, match="closed"):
            call()
    assert not any(thread.name == "cellstream client" for thread in threading.enumerate())


def test_a_client_that_is_forgotten_ends_its_thread(target: str) -> None:
    """No `with`, no `close`: neither a thread nor a connection is left behind."""
    BlockingClient(target).health()
    assert not any(thread.name == "cellstream client" for thread in threading.enumerate())


def test_a_fork_is_told_and_does_not_hang(client: BlockingClient) -> None:
    """Neither threads nor connections survive a fork; the parent's client goes on."""
    assert client.health() is Health.SERVING
    child = os.fork()
    if child == 0:
        try:
            client.health()
        except ConnectionLost as error:
            os._exit(7 if "fork" in error.message else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert client.health() is Health.SERVING


def test_ctrl_c_ends_the_wait_and_the_program(target: str) -> None:
    """In the middle of a generation: the exception comes through, and the program ends by itself."""
    code = """
import sys
from cellstream import BlockingClient

with BlockingClient(sys.argv[1]) as client:
    try:
        for piece in client.generate("a", max_tokens=60_000):
            print(piece.position, flush=True)
    except KeyboardInterrupt:
        print("interrupted", client.health().name, flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code, target], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None
        program.stdout.readline()
        program.send_signal(signal.SIGINT)
        printed, complained = program.communicate(timeout=20)
    assert printed.splitlines()[-1] == "interrupted SERVING"
    assert complained == ""
    assert program.returncode == 0
