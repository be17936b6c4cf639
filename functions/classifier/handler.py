"""Tells in which language a text is written: a linear model over letter sequences."""

from __future__ import annotations

from typing import Any

import torch
from features import LABELS, features

MAX_TEXT_CHARS = 100_000


class Handler:
    """Answers `{"text": ...}` with a label, and every label's probability."""

    def setup(self, context: Any) -> None:
        """Maps the weights; `runtime.options.threshold` is the least confidence for a label."""
        tensors = context.load_tensors("weights.safetensors")
        self.weight = tensors["weight"]
        self.threshold = float(context.options.get("threshold", 0.0))

    @torch.inference_mode()
    def predict(self, payload: Any) -> dict[str, Any]:
        """The language of `payload["text"]`; `unknown` where no label is likely enough."""
        text = payload.get("text") if isinstance(payload, dict) else None
        if not isinstance(text, str):
            raise TypeError('give {"text": "..."}')
        if len(text) > MAX_TEXT_CHARS:
            raise ValueError(f"the text has {len(text)} characters, more than {MAX_TEXT_CHARS}")
        chances = torch.softmax(self.weight @ features(text), dim=0)
        best = int(chances.argmax())
        confidence = float(chances[best])
        return {
            "label": LABELS[best] if confidence >= self.threshold else "unknown",
            "confidence": round(confidence, 4),
            "scores": {
                label: round(float(chance), 4)
                for label, chance in zip(LABELS, chances, strict=True)
            },
        }
