"""Lines that cannot be written are dropped, counted and told of; whoever writes one never waits."""

import contextlib
import fcntl
import os
import resource
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator

import pytest

from cellstream.cli.log_writer import LINE_BYTES_MAX, LogWriter

WAIT_SECONDS = 30
"""Longer than anything here takes; only a test that fails waits so long."""


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """The ends of a pipe: to read from, to write to."""
    ends = os.pipe()
    yield ends
    for end in ends:
        with contextlib.suppress(OSError):  # a test closed it
            os.close(end)


Make = Callable[..., LogWriter]


@pytest.fixture
def make_writer(pipe: tuple[int, int]) -> Iterator[Make]:
    """Makes writers that say `dropped N`; none still writes when the next test has the same descriptors."""
    made: list[LogWriter] = []

    def make(descriptor: int | None, buffer_bytes_max: int = 1 << 20) -> LogWriter:
        made.append(LogWriter(descriptor, buffer_bytes_max, lambda lines: f"dropped {lines}"))
        return made[-1]

    yield make
    with contextlib.suppress(OSError):
        os.close(pipe[0])  # so that whoever waits for it gets EPIPE
    for writer in made:
        writer.close(WAIT_SECONDS)


def fill(end: int) -> int:
    """Fill a pipe to the last byte, with zeros; return how many."""
    filled = 0
    os.set_blocking(end, False)
    for size in (65_536, 4096, 1):
        try:
            while True:
                filled += os.write(end, bytes(size))
        except BlockingIOError:
            pass
    os.set_blocking(end, True)
    return filled


def read(end: int, size: int) -> bytes:
    """Exactly so many bytes."""
    data = b""
    while len(data) < size:
        data += os.read(end, size - len(data))
    return data


def read_lines(end: int, last: bytes) -> list[bytes]:
    """Every line up to one that is `last`."""
    data = b""
    while not data.endswith(b"\n" + last + b"\n"):
        data += os.read(end, 65_536)
    return data.splitlines()


def test_lines_arrive_in_order_and_the_last_at_the_end(pipe: tuple[int, int], make_writer: Make) -> None:
    """Also the lines of the program's last moment."""
    writer = make_writer(pipe[1])
    for number in range(1000):
        writer.write(f"line {number} ü \udcff")
    writer.close(WAIT_SECONDS)
    os.close(pipe[1])
    with open(pipe[0], "rb", closefd=False) as reader:
        expected = [f"line {number} ü \\udcff\n".encode() for number in range(1000)]
        assert reader.readlines() == expected
    assert writer.lines_dropped == 0


def test_a_reader_that_stops_costs_lines_and_nobody_waits(pipe: tuple[int, int], make_writer: Make) -> None:
    """The server's loop logs; were it to wait for a log's reader, everything would stand still."""
    filled = fill(pipe[1])
    writer = make_writer(pipe[1], buffer_bytes_max=50_000)
    for number in range(10_000):
        writer.write(f"line {number}")  # would never return
    dropped = writer.lines_dropped
    assert 9000 < dropped < 10_000
    read(pipe[0], filled)
    lines = [f"line {number}".encode() for number in range(10_000 - dropped)]
    assert b"".join(line + b"\n" for line in lines) == read(pipe[0], sum(len(line) + 1 for line in lines))
    writer.write("after")
    assert read_lines(pipe[0], b"after") == [f"dropped {dropped}".encode(), b"after"]
    writer.close(WAIT_SECONDS)
    assert writer.lines_dropped == dropped


def test_the_buffer_has_a_bound_in_bytes(pipe: tuple[int, int], make_writer: Make) -> None:
    """Short lines too: each costs more than its bytes."""
    fill(pipe[1])
    for line in ("", "a" * 1000):
        writer = make_writer(pipe[1], buffer_bytes_max=100_000)
        for _ in range(2000):
            writer.write(line)
        assert 2000 - writer.lines_dropped <= 100_000 // (100 + len(line))


def test_at_the_bound_lines_come_again_only_once_half_is_written(
    pipe: tuple[int, int], make_writer: Make
) -> None:
    """Otherwise a slow reader would read, line by line, that one was dropped."""
    filled = fill(pipe[1])
    writer = make_writer(pipe[1], buffer_bytes_max=20_000)
    line = "a" * 900
    while not writer.lines_dropped:
        writer.write(line)
    read(pipe[0], filled)
    received = read(pipe[0], 901 * 8)  # eight of twenty: more than half still wait, or stand in the pipe
    assert received == (line.encode() + b"\n") * 8
    writer.close(WAIT_SECONDS)
    os.close(pipe[1])
    with open(pipe[0], "rb", closefd=False) as reader:
        rest = reader.read().splitlines()
    assert rest[-1] == f"dropped {writer.lines_dropped}".encode()
    assert rest.count(rest[-1]) == 1


def test_a_full_disk_costs_lines_and_is_told_of_once_there_is_room() -> None:
    """A file that may not grow is as full as a disk; the parent lets it grow again while the program runs.

    A line that was written in part is ended first, so that what follows is a line of its own.
    """
    program = """
        import os, sys
        from cellstream.cli.log_writer import LogWriter
        writer = LogWriter(int(sys.argv[1]), 1 << 20, lambda lines: f"dropped {lines}")
        for number in range(5):
            writer.write("a" * 29)
        while writer.lines_dropped < 2:  # the thread's doing
            os.sched_yield()
        print("full", flush=True)
        sys.stdin.readline()
        writer.write("after")
        writer.close(30)
        print(writer.lines_dropped)
    """
    file = os.memfd_create("log")
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), str(file)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=[file],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY)),
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "full\n"
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        print(file=process.stdin, flush=True)
        assert process.stdout.read() == "2\n"
    os.lseek(file, 0, os.SEEK_SET)
    with open(file, "rb") as written:
        assert written.read() == (b"a" * 29 + b"\n") * 3 + b"a" * 10 + b"\ndropped 2\nafter\n"


def test_nowhere_to_write_to_is_counted(make_writer: Make) -> None:
    """Standard error was closed when the program began."""
    writer = make_writer(None)
    writer.write("a")
    writer.write("b")
    writer.close(WAIT_SECONDS)
    assert writer.lines_dropped == 2
    assert repr(writer) == "<LogWriter 0 bytes waiting, 2 lines dropped>"


def test_a_reader_that_has_gone_is_an_error_like_any_other(pipe: tuple[int, int], make_writer: Make) -> None:
    """EPIPE: `cellstream serve 2>&1 | head`."""
    writer = make_writer(pipe[1])
    os.close(pipe[0])
    writer.write("a")
    writer.write("b")
    writer.close(WAIT_SECONDS)
    assert writer.lines_dropped == 2


def test_closing_waits_for_a_bounded_time(pipe: tuple[int, int], make_writer: Make) -> None:
    """With a reader that does not read the program must end all the same."""
    fill(pipe[1])
    writer = make_writer(pipe[1])
    writer.write("a")
    writer.close(0.01)
    writer.write("too late")
    assert writer.lines_dropped == 1
    assert repr(writer) == "<LogWriter 102 bytes waiting, 1 lines dropped>"


def test_a_pipe_that_somebody_made_non_blocking_is_written_all_the_same(
    pipe: tuple[int, int], make_writer: Make
) -> None:
    """The flag belongs to the open file, which a shell or another program shares with us; we never set it."""
    filled = fill(pipe[1])
    os.set_blocking(pipe[1], False)
    writer = make_writer(pipe[1])
    writer.write("a")
    assert read(pipe[0], filled + 2).endswith(b"\0a\n")
    writer.close(WAIT_SECONDS)
    assert writer.lines_dropped == 0
    os.set_blocking(pipe[1], True)
    make_writer(pipe[1]).close(WAIT_SECONDS)
    assert not fcntl.fcntl(pipe[1], fcntl.F_GETFL) & os.O_NONBLOCK


def test_a_long_line_is_cut_between_characters(pipe: tuple[int, int], make_writer: Make) -> None:
    """One line never takes more than a sixty-fourth of the buffer, and stays UTF-8."""
    writer = make_writer(pipe[1])
    for start in ("", "a"):
        writer.write(start + "ü" * LINE_BYTES_MAX)
    with open(pipe[0], "rb", closefd=False) as reader:
        for start in ("", "a"):
            line = reader.readline()
            assert len(line) in (LINE_BYTES_MAX, LINE_BYTES_MAX - 1)
            assert line.decode() == start + "ü" * ((LINE_BYTES_MAX - 7 - len(start)) // 2) + " (cut)\n"


def test_many_threads_lose_nothing(pipe: tuple[int, int], make_writer: Make) -> None:
    """GRPC's core, ONNX Runtime's loader and the loop log from threads of their own."""
    writer = make_writer(pipe[1])
    received: list[bytes] = []

    def collect() -> None:
        with open(pipe[0], "rb", closefd=False) as reader:
            received.extend(reader)

    reader = threading.Thread(target=collect)
    reader.start()
    threads = [
        threading.Thread(target=lambda name=name: [writer.write(f"{name} {n}") for n in range(500)])  # type: ignore[misc]
        for name in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.close(WAIT_SECONDS)
    os.close(pipe[1])
    reader.join(WAIT_SECONDS)
    assert sorted(received) == sorted(f"{name} {n}\n".encode() for name in range(8) for n in range(500))
    assert writer.lines_dropped == 0
