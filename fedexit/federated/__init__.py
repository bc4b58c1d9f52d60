"""The paper's federation: client rounds, aggregation by Eq. (1), and the round loop."""
