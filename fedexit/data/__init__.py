"""Speech: decoding, corpora, tasks and batches."""
