"""Context prediction (word2vec): words predict their neighbours against negatives."""
