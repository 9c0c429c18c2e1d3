"""Floods and bombs against a running server, beside honest sessions that compare every answer.

`attackers` is run in a process of its own, and so is `honest`: neither shares a loop with the other, and both
are kept off the server's core (`report`).
"""
