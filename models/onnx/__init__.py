"""ONNX graphs and sessions: export, join, preprocess, check and run."""
