"""Training by several processes, on what torch.distributed has: each takes its rows, and all make the same step."""
