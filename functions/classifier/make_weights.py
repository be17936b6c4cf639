"""Trains weights.safetensors from the sentences in sentences.json; the same bits every time.

python functions/classifier/make_weights.py
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from features import BUCKETS, LABELS, features
from safetensors.torch import save_file
from torch import Tensor

HERE = Path(__file__).parent
STEPS = 200
LEARNING_RATE = 0.5
DECAY = 1e-4


def train(sentences: dict[str, list[str]]) -> Tensor:
    """Softmax regression by plain gradient descent from zero: `[labels, BUCKETS]` float32."""
    rows = torch.stack([features(s) for label in LABELS for s in sentences[label]])
    truth = torch.tensor([i for i, label in enumerate(LABELS) for _ in sentences[label]])
    weight = torch.zeros(len(LABELS), BUCKETS, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=LEARNING_RATE * len(rows), weight_decay=DECAY)
    for _ in range(STEPS):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(rows @ weight.T, truth).backward()
        optimizer.step()
    return weight.detach()


if __name__ == "__main__":
    torch.set_num_threads(1)  # the order of additions, and so the bits, depend on it
    weight = train(json.loads((HERE / "sentences.json").read_text(encoding="utf-8")))
    save_file({"weight": weight}, HERE / "weights.safetensors")
