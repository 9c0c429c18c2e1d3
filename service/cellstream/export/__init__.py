"""From a trained model to a version that can be served: ONNX graphs, manifest, proof that they agree."""
