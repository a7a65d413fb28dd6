"""The kinds of heads, one file each: `kind.py` says what a kind is, and finds the records in these files."""
