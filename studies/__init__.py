"""What the cell state buys: one LSTM, one GRU and two vanilla networks, measured side by side.

Run from the root of a checkout, with the extra `studies` installed. Each step writes a small file into
`studies/results`, and the last one draws them all:

    python -m studies.learning_rates    short runs on the validation play suggest each network's learning rate
    python -m studies.networks          trains the four, 45 minutes on one core; runs/ keeps them
    python -m studies.anchors           compressors and n-grams on the same text
    python -m studies.memory            loss by distance, of the four
    python -m studies.gradients         gradients by distance, before and after training
    python -m studies.recall            the recall task, tiny networks trained for it
    python -m studies.shipped           the same loss curves of the model in models/, by ONNX Runtime
    python -m studies.page              docs/studies: the pictures, and the page with its tables
"""
