"""Training by several processes, with torch.distributed: each uses its own rows, and all take the same step."""
