"""How it is trained: runs, schedules and phases, optimizers, history, checkpoints."""
