"""Bags of rows of an embedding table, and optimizers that update only the rows of a batch."""
