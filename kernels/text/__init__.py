"""Text as numbers: the words of bytes, found, told apart and counted."""
