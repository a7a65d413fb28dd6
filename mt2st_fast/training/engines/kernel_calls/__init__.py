"""Steps, or their gradients, by one kernel call on a CPU: what it takes, and what it holds of a model."""
