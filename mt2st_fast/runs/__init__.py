"""Training runs from a configuration: their options, their setup, what they write, and their comparison."""
