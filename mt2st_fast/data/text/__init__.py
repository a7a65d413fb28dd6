"""From bytes to lines and words: the one rule for all text input (decoding.py), and the modules that apply it."""
