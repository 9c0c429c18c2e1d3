"""What serving costs beside the model: ratios of tokens per second, each taken inside one run.

    python -m bench                          every row, about five minutes
    python -m bench --only service           rows whose names begin so
    python -m bench --seconds 0.5 --pairs 3  a quick look

Each row sets something of ours beside its floor: the engine or the service beside bare ONNX Runtime on the
same graph, or the service beside a bare gRPC echo. The two take turns of a few seconds, so that a
noisy neighbour slows both; the ratio of each pair is kept, and their median is what counts.
"""
