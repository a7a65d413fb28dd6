"""Requirements of the suites of bags and words, each stated once; those of heads and steps are with their cases."""

# (case, direction, candidate): minimum ratio to its peer. Passes and steps exclude reading a file.
BAGS_OVER_PEER = {
    ("documents", "a pass", "ours, one head"): 3.0,
    ("documents", "a pass", "ours, five heads"): 12.0,
    ("five heads on bags", "step", "ours"): 4.0,
}
MOST_LONGER = 1.3  # a step on a table of ten million rows over one on ten thousand
POLARITY_OF_FASTTEXT = 0.5
WORDS_OVER_GENSIM = {"train": 2.0, "whole call": 3.0}
ALLOWED_LOSS = 0.02  # in a score against human judgements
GPU_OVER_CPU = 20.0  # tokens/s of a pass over those of a CPU with two threads
UPDATE_OF_FLOOR = 2.0  # time of an update over that of a copy of its bytes
# Minimum tokens/s or words/s of training, for whole jobs on a GPU.
JOBS_ON_GPU = {"mt2st-fast train": 2e6, "train_supervised": 5e8, "Word2Vec, skip-gram": 2e7}
