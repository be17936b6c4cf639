"""Turns checkpoints of other formats into aligned safetensors, one step or format a module."""
