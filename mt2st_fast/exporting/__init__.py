"""Trained models as graphs of plain operators, for ONNX runtimes and for torch.export."""
