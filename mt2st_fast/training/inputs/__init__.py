"""The batches of a run: their forms, where they come from, and how a resumed run knows them again."""
