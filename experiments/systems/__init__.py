"""Studies that are not a grid of attacks on classes, by the field `system`."""

from experiments.systems.registry import SYSTEMS, System

__all__ = ["SYSTEMS", "System"]
