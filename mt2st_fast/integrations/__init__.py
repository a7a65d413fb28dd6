"""Phases and multi-task losses in other libraries' trainers: one file per library, each with an extra of its name."""
