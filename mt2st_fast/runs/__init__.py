"""A training run from a configuration: what decides it, how it is set up, what it leaves behind, how runs compare."""
