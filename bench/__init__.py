"""What serving costs beside the model: ratios of tokens per second, each taken inside one run.

    python -m bench                           every row, about six minutes
    python -m bench --only service            rows whose names begin so
    python -m bench --seconds 0.5 --pairs 3   a quick look
    python -m bench fronts                    both transports beside the service before them, seven minutes
    python -m bench sweep                     how cost grows with sessions, streams, layers
    python -m bench profile                   where a microsecond goes, by library (needs perf)
    python -m bench page                      the docs' tables and figures, from the committed results
    python -m bench publish                   all of these, the results committed ones
    python -m bench.products                  why weights in 8 bits are stored as they are

Each row sets something of ours beside its floor: the engine or the service beside bare ONNX Runtime on the
same graph, or the service beside a bare gRPC echo. The two take turns of about a second, so that a
noisy neighbour slows both; the ratio of each pair is kept, and their median is what counts. The transports
are set beside the service before them in the same way; `before.py` makes it from git's history.
"""
