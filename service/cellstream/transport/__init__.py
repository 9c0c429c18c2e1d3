"""From bytes to messages and back: HTTP/2, gRPC over it, and the sockets below. It knows no message of ours."""
