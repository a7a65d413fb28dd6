"""Text as numbers: the words of bytes, found, told apart and counted.

Bytes are read on a CPU, whatever trains on them: there are no backends to choose from.
"""
