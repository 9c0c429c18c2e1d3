"""From bytes to messages and back: HTTP/2, gRPC over it, the sockets below. It knows no message of ours."""
