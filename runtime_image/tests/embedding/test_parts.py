"""Batches, pooling and configuration: what the real model does not exercise."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stoker_runtime.engines.embedding_batches import (
    MAX_BATCH_ROWS,
    MAX_BATCH_TOKENS,
    padded,
    plan,
    pool,
    unit,
)
from stoker_runtime.engines.embedding_config import (
    Pooling,
    read_embedding_config,
    read_encoder_shape,
)
from stoker_runtime.errors import CheckpointRejected

SHAPE = {
    "architectures": ["BertModel"],
    "vocab_size": 100,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
}


@given(st.lists(st.integers(min_value=1, max_value=512), min_size=1, max_size=300))
def test_a_plan_runs_every_input_once_within_its_bounds(lengths):
    batches = plan(lengths)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[index] for index in batch)
        assert len(batch) <= MAX_BATCH_ROWS
        assert len(batch) * longest <= MAX_BATCH_TOKENS


def test_an_input_beyond_the_bound_runs_alone():
    assert plan([MAX_BATCH_TOKENS + 1, 1, 1]) == [[0], [1, 2]]


def test_padding_is_masked():
    ids, mask = padded([[5, 6, 7], [8]])
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert mask.tolist() == [[True, True, True], [True, False, False]]


@pytest.mark.parametrize(
    ("pooling", "first", "second"),
    [
        (Pooling.MEAN, [2.0, 2.0], [7.0, -7.0]),
        (Pooling.CLS, [1.0, 1.0], [7.0, -7.0]),
        (Pooling.MAX, [3.0, 3.0], [7.0, -7.0]),
        (Pooling.LAST, [3.0, 3.0], [7.0, -7.0]),
    ],
)
def test_pooling_ignores_padding(pooling, first, second):
    hidden = torch.tensor([[[1.0, 1.0], [3.0, 3.0]], [[7.0, -7.0], [99.0, 99.0]]])
    mask = torch.tensor([[True, True], [True, False]])
    assert pool(hidden, mask, pooling).tolist() == [first, second]


def test_unit_cuts_before_it_normalises():
    assert unit(torch.tensor([[3.0, 4.0, 100.0]]), 2)[0].tolist() == pytest.approx([0.6, 0.8])


def write(folder, **files):
    for name, content in files.items():
        path = folder / name.replace("__", "/")
        path = path.with_name(path.name + ".json")
        path.parent.mkdir(exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def test_files_of_sentence_transformers_are_optional(tmp_path):
    config = read_embedding_config(write(tmp_path, config=SHAPE))
    assert (config.pooling, config.max_tokens, config.lower_case) == (Pooling.MEAN, None, False)


@pytest.mark.parametrize(
    ("files", "code", "words"),
    [
        ({}, "checkpoint_incomplete", "config.json"),
        ({"config": "{"}, "checkpoint_config_invalid", "config.json cannot be read"),
        (
            {"config": SHAPE, "modules": [{"type": "sentence_transformers.models.Dense"}]},
            "checkpoint_unsupported",
            "asks for the stage Dense",
        ),
        ({"config": SHAPE, "modules": [1]}, "checkpoint_config_invalid", "modules.json is not"),
        (
            {"config": SHAPE, "1_Pooling__config": {"pooling_mode_weightedmean_tokens": True}},
            "checkpoint_unsupported",
            "asks for pooling_mode_weightedmean_tokens",
        ),
        (
            {
                "config": SHAPE,
                "1_Pooling__config": {
                    "pooling_mode_mean_tokens": True,
                    "pooling_mode_cls_token": True,
                },
            },
            "checkpoint_unsupported",
            "pooling_mode_mean_tokens and pooling_mode_cls_token",
        ),
    ],
)
def test_what_is_not_served_is_named(tmp_path, files, code, words):
    write(tmp_path, **files)
    with pytest.raises(CheckpointRejected) as caught:
        read_embedding_config(tmp_path)
    assert caught.value.error.code == code
    assert words in caught.value.error.message


def test_relative_positions_are_refused(tmp_path):
    write(tmp_path, config={**SHAPE, "position_embedding_type": "relative_key"})
    with pytest.raises(CheckpointRejected, match="position_embedding_type 'relative_key'"):
        read_encoder_shape(tmp_path)
