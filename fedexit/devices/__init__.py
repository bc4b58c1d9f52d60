"""Devices: profiles, their load and faults, and the policy that chooses the depth L_i of a device."""
