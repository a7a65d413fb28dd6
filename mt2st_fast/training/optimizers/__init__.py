"""Optimizers: row-sparse ones, their learning rate, and what a run does to the parameters and state that one holds."""
