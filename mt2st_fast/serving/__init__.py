"""Using trained models: text goes in and labels come out."""
