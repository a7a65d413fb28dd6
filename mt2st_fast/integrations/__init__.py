"""Phases and multi-task losses in other people's trainers, a library a file; each needs the extra of its name."""
