"""Devices: profiles, the depth policy and its dynamics, from a device to its depth L_i."""
