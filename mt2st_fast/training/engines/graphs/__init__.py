"""Steps as CUDA graphs: captured once, and replayed."""
