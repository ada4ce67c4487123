"""Names and shapes of every published checkpoint and diffusers' configuration, both ways; the table of models."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest
import torch

from dcae_cache.errors import CheckpointError, UnknownModelError
from dcae_cache.models import zoo
from dcae_cache.models.layouts import (
    diffusers_config,
    from_published,
    native_shapes,
    spec_from_diffusers_config,
    tensor_plans,
    to_diffusers,
    to_efficientvit,
)
from dcae_cache.models.spec import DCAESpec, stages
from helpers.golden import HALVES, NARROW, load, native_weights, published_checkpoints, spec_from_golden

PUBLISHED = tuple(published_checkpoints())
SPECS = {entry.name: entry.spec for entry in zoo.entries() if entry.folder is None}


def published_shapes(spec, layout):
    plans = [plan for half in HALVES for plan in tensor_plans(spec, half, layout).values()]
    return {source.name: list(source.shape) for plan in plans for source in plan.sources}


@pytest.mark.parametrize("long_name", PUBLISHED)
def test_names_and_shapes_are_the_published_ones(long_name):
    assert published_shapes(zoo.get(long_name).spec, "efficientvit") == published_checkpoints()[long_name]["tensors"]


@pytest.mark.parametrize("long_name", PUBLISHED)
def test_parameter_counts_are_the_published_ones(long_name):
    for half in HALVES:
        buffers = ("running_mean", "running_var", "num_batches_tracked")
        shapes = native_shapes(zoo.get(long_name).spec, half)
        count = sum(math.prod(shape) for name, shape in shapes.items() if not name.endswith(buffers))
        assert count == published_checkpoints()[long_name][f"params_{half}"]


@pytest.mark.parametrize("long_name", PUBLISHED)
def test_the_zoo_agrees_with_the_published_configuration(long_name):
    config = published_checkpoints()[long_name]["config"]
    entry = zoo.get(long_name)
    assert entry.spec == spec_from_golden(config)
    assert config["scaling_factor"] in (None, entry.scaling_factor)


@pytest.mark.parametrize("name", SPECS)
def test_diffusers_builds_the_same_tensors(name):
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        model = diffusers.AutoencoderDC.from_config(diffusers_config(SPECS[name], None))
    shapes = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
    assert published_shapes(SPECS[name], "diffusers") == shapes


@pytest.mark.parametrize("name", NARROW)
def test_tensors_survive_both_layouts(name):
    spec = load(name).spec
    native = native_weights(spec)
    for layout, convert in (("diffusers", to_diffusers), ("efficientvit", to_efficientvit)):
        published = convert(native, spec)
        assert {key: list(tensor.shape) for key, tensor in published.items()} == published_shapes(spec, layout)
        back = {key: t for half in HALVES for key, t in from_published(published, spec, half, layout).items()}
        assert back.keys() == native.keys()
        assert all(torch.equal(back[key], native[key]) for key in native)


@pytest.mark.parametrize("name", SPECS)
def test_diffusers_config_round_trips(name):
    for factor in (None, 0.25):
        config = json.loads(json.dumps(diffusers_config(SPECS[name], factor)))
        assert spec_from_diffusers_config(config) == (SPECS[name], factor)
    assert DCAESpec.from_dict(json.loads(json.dumps(SPECS[name].to_dict()))) == SPECS[name]


def test_a_scaling_factor_of_one_is_the_class_default_and_means_none():
    config = diffusers_config(SPECS["f32c32-mix"], 1.0)
    assert config["scaling_factor"] == 1.0
    assert spec_from_diffusers_config(config)[1] is None


def test_keys_left_out_take_the_class_defaults():
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        full = diffusers.AutoencoderDC()
    config = json.loads(json.dumps({**full.config, "_class_name": "AutoencoderDC"}))
    assert spec_from_diffusers_config({"_class_name": "AutoencoderDC"}) == spec_from_diffusers_config(config)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"_class_name": "AutoencoderKL"}, "_class_name"),
        ({"in_channels": 4}, "in_channels"),
        ({"attention_head_dim": 8}, "attention_head_dim"),
        ({"encoder_block_types": "SwinBlock"}, "encoder_block_types"),
        ({"encoder_layers_per_block": [0, 4, 8, 2, 2]}, "encoder_layers_per_block"),
        ({"encoder_layers_per_block": [0, 4, 0, 2, 2, 2]}, "encoder stage 2"),
        ({"encoder_block_out_channels": [128, 256, 512, 512, 1024, -1]}, "encoder stage 5"),
        ({"encoder_block_out_channels": "many"}, "encoder_block_out_channels"),
        ({"decoder_qkv_multiscales": [[], [], [], [3], [3], [3]]}, "decoder_qkv_multiscales"),
        ({"decoder_norm_types": "batch_norm"}, "decoder_norm_types"),
        ({"decoder_norm_types": ["rms_norm"] * 5 + [3]}, "decoder_norm_types"),
        ({"decoder_act_fns": "gelu"}, "decoder_act_fns"),
        ({"downsample_block_type": "maxpool"}, "downsample_block_type"),
        ({"encoder_out_shortcut": "yes"}, "encoder_out_shortcut"),
        ({"latent_channels": 0}, "latent_channels"),
        ({"latent_channels": 31}, "latent_channels"),
        ({"scaling_factor": -1}, "scaling_factor"),
        ({"scaling_factor": "big"}, "scaling_factor"),
    ],
)
def test_a_configuration_that_no_model_uses_is_refused_by_key(change, named):
    with pytest.raises(CheckpointError, match=named):
        spec_from_diffusers_config({**diffusers_config(SPECS["f32c32-mix"], 0.4552), **change})


def test_every_name_of_a_model_finds_it():
    for entry in zoo.entries():
        for alias in entry.aliases:
            assert zoo.find(alias) is entry
            assert zoo.find(alias.upper()) is entry
    assert zoo.get("f32c32-sana").long_name == "dc-ae-f32c32-sana-1.1"
    assert zoo.get("mit-han-lab/dc-ae-f64c128-in-1.0-diffusers").name == "f64c128-in"
    assert len({alias for entry in zoo.entries() for alias in entry.aliases}) == sum(
        len(entry.aliases) for entry in zoo.entries()
    )


def test_only_two_lack_a_scaling_factor():
    lacking = [e.name for e in zoo.entries() if e.scaling_factor is None and e.spec is not None]
    assert lacking == ["f32c32-in-256px", "f32c128-1.5"]


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("f32c32-mx", "f32c32-mix"),
        ("dc-ae-f64c128-inn-1.0", "f64c128-in"),
        ("someone/dc-ae-f32c32-snaa", "f32c32-sana"),
    ],
)
def test_an_unknown_name_gets_the_nearest_ones(wrong, nearest):
    with pytest.raises(UnknownModelError, match=rf"{wrong}.*nearest: .*{nearest}"):
        zoo.get(wrong)


def test_a_name_like_no_other_gets_the_whole_list():
    with pytest.raises(UnknownModelError, match="known: f32c32-mix, f32c32-in"):
        zoo.get("qqqqqq")


def test_stages_of_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="zip"):
        stages((8, 16), (1, 1, 1))


def test_the_table_of_models_needs_no_torch():
    code = "import sys, dcae_cache.models.zoo as zoo; zoo.entries(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
