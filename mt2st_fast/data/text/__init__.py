"""From bytes to lines and words: the one rule for every text that comes in (decoding.py), and who goes by it."""
