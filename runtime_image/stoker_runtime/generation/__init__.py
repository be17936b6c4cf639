"""Text generation: one decode loop in which requests join and leave at token boundaries."""

from stoker_runtime.generation.bounds import Bounds
from stoker_runtime.generation.loop import GenerationLoop

__all__ = ["Bounds", "GenerationLoop"]
