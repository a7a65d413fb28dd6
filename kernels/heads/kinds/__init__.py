"""The kinds of heads, one per file: `kind.py` defines what a kind is, and finds the records in these files."""
