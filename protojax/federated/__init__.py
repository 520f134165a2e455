"""Nodes as an array axis: who holds what, rounds, merges, and what is sent."""
