"""Trials of a running server: strangers' clients and proxies, attacks, random bytes, hours of use.

    python -m trials peers      real clients and proxies, a table of what each can do
    python -m trials attack     floods beside honest sessions, and what they cost those
    python -m trials fuzz       random and mutated bytes into the transport, coverage-guided
    python -m trials soak       random use for a long time; memory and file descriptors

Everything here talks to `cellstream serve` in a process of its own, over sockets, except `fuzz`, which drives
the transport's state machines in this process. Nothing here knows the inside of the server.
"""
