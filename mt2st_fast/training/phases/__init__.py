"""Phases: what a schedule sees and decides, and how a run or any other loop follows it."""
