"""Text as numbers: find, distinguish and count the words in bytes.

Bytes are always read on a CPU, whatever device trains: there are no backends to choose from.
"""
