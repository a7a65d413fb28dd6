"""Convolutions over sequences: torch.nn.Conv1d."""
