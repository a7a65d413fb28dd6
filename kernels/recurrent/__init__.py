"""Layers that read sequences step by step: GRU and LSTM."""
