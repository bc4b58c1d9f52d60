"""Protect what clients send, and measure what leaks. Start with `noise.private_method` or `secure.secure_rule`.

secure      sums of masked updates, layer by layer
noise       training with clipping and noise by depth
accounting  epsilon of such training, in three ways
leakage     attacks on updates and exit times
"""
