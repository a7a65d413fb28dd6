"""Passes of AdaGrad on a CPU."""
