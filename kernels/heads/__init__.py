"""The fused loss of all heads: losses and gradients in one pass."""
