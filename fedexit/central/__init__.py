"""Central training: fine-tuning, pre-training and probes."""
