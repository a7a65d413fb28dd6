"""Trained models at work: text goes in and labels come out."""
