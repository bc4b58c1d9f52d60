"""Protect what clients send: secure aggregation, differential privacy, and attacks that measure what leaks."""
