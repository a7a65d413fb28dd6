"""Bags of rows of an embedding table, and the optimizers that step the rows of a batch alone."""
