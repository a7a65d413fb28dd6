"""Whole training steps in one kernel call."""
