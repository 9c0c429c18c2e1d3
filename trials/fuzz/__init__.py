"""Bytes that nobody would send, into `transport/http2.py` and `transport/grpc.py`, in this process."""
