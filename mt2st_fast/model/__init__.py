"""What is trained: encoders, tasks and their heads."""
