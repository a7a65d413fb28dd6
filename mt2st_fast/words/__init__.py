"""Models of words: Word2Vec, fastText's classifier, and what word vectors are kept in and measured by."""
