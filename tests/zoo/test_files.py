"""Files of every family: converted both ways, recognised without being told, loaded."""

import dataclasses
import functools

import numpy as np
import pytest
from held import held_params

from vit_jax import inference
from vit_jax.checkpoint import convert, identify, load_pretrained, names
from vit_jax.checkpoint.files.formats import open_archive, write_npz
from vit_jax.checkpoint.names import expected_shapes
from vit_jax.errors import UserError
from vit_jax.families.registry import families, resolve, taking
from vit_jax.families.sizes import recorded
from vit_jax.tree import arrays, unflatten

# A plain DeiT and DINO have the tensors of a Vision Transformer, a SimpleViT those of big_vision's,
# LeViT as convolutions differs in PyTorch only, the two BEiT in their images, and CLIP's activation
# is no tensor: they have to be named.
NAMED = ("deit", "dino", "simple_vit", "levit_conv", "beit", "beitv2", "clip_vision")


def smallest(family: str) -> str:
    known = families()[family].architectures
    own = [name for name in known if known[name].alias_of is None]
    return min(own, key=lambda name: recorded()[name].params)


@functools.lru_cache(1)  # those of all families are gigabytes
def weights(family: str) -> dict[str, np.ndarray]:
    """Random ones of the family's smallest model, by our names."""
    spec = resolve(smallest(family))
    side = spec.preprocess.size
    return held_params(spec.config.to_dict(), spec.num_classes, (side, side))


@pytest.fixture(params=taking("images"), scope="module")  # so that a family's tests come together
def family(request):
    return request.param


def test_files_are_recognised_and_converted_both_ways(family, tmp_path):
    name, to = smallest(family), families()[family].reference
    linen_file = tmp_path / "ours.npz"  # nothing says what the tensors are of
    write_npz(linen_file, weights(family))
    named = name if family in NAMED else None
    there = tmp_path / ("there.npz" if to == "big_vision" else "there.safetensors")
    back = tmp_path / "back.npz"
    # What transformers computes otherwise is said, and no tensor is another for it.
    report = convert(linen_file, there, to=to, model=named, allow=("other-function",))
    assert report.model == name
    config = resolve(name).config.to_dict()
    held, _ = names.reduced(weights(family), config, to, None)
    assert report.num_params == sum(held[n].size for n in held.keys() - names.statistics(config))
    lost = 2 * resolve(name).config.get("hidden_size", 0)  # a mask token and a position at most
    assert 0 <= recorded()[name].params - report.num_params <= lost
    found = identify(there)
    assert found.models == (name,)
    assert found.layout == ("linen" if family == "simple_vit" else to)  # which are the same
    side = resolve(name).preprocess.size
    assert found.image_size == (side, side)
    assert found.num_classes == resolve(name).num_classes
    assert found.preprocess == resolve(name).preprocess
    convert(there, back, to="official")
    with open_archive(back) as archive:
        wanted = names.official(weights(family), resolve(name).config.to_dict())
        assert set(archive) == set(wanted)
        for key, x in wanted.items():
            np.testing.assert_array_equal(archive[key], x, err_msg=key)


def test_a_damaged_file_names_what_is_wrong(family, tmp_path):
    tensors = {name: np.zeros(x.shape, np.float16) for name, x in weights(family).items()}
    gone = next(name for name in tensors if not name.startswith("head"))
    del tensors[gone]
    linen_file = tmp_path / "ours.npz"
    write_npz(linen_file, tensors)
    with pytest.raises(UserError, match="missing") as error:
        convert(linen_file, tmp_path / "out.npz", to="official", model=smallest(family))
    assert gone in str(error.value)
    assert not (tmp_path / "out.npz").exists()


def test_a_loaded_model_classifies(tmp_path):
    """Running statistics reach the model."""
    name = smallest("levit")
    path = tmp_path / "levit.npz"
    write_npz(path, weights("levit"))
    loaded = inference.load_model(path)
    assert loaded.weights.model.name == name
    side = resolve(name).preprocess.size
    images = np.random.default_rng(0).uniform(-1, 1, (1, side, side, 3)).astype(np.float32)
    probabilities = loaded.probabilities(images)
    assert probabilities.shape == (1, 1000)
    np.testing.assert_allclose(probabilities.sum(), 1, rtol=1e-9)
    statistics = loaded.variables["batch_stats"]
    assert len(arrays(statistics)) == sum(n.endswith("/mean") for n in weights("levit")) * 2
    moved = unflatten({n: x + 1 for n, x in arrays(statistics).items()})
    other = dataclasses.replace(loaded, variables=loaded.variables | {"batch_stats": moved})
    assert np.abs(other.probabilities(images) - probabilities).max() > 1e-3


def test_pretrained_weights_for_another_head_and_image_size(tmp_path):
    name = smallest("deit_distilled")
    config = resolve(name).config.to_dict()
    path = tmp_path / "deit.npz"
    write_npz(path, weights("deit_distilled"))
    shapes = expected_shapes(config, num_classes=3, image_size=(160, 160))
    init = {n: np.zeros(s, np.float32) for n, s in shapes.items()}
    params = arrays(
        load_pretrained(pretrained_path=path, init_params=unflatten(init), model_config=config)
    )
    assert {n: x.shape for n, x in params.items()} == shapes
    assert not any(x.any() for n, x in params.items() if n.startswith("head"))
    assert params["posembed_input/pos_embedding"].any()


def test_a_family_that_takes_one_size_says_so(tmp_path, monkeypatch):
    # All of them can be resized: take away how.
    monkeypatch.setattr(names, "resizes", lambda *args: {})
    path = tmp_path / "pit.npz"
    write_npz(path, weights("pit"))
    with pytest.raises(UserError, match="takes images of 224×224 pixels") as error:
        convert(
            path, tmp_path / "out.npz", to="official", model="pit_ti_224", image_size=(256, 256)
        )
    assert "posembed_input/pos_embedding" in str(error.value)
    assert not (tmp_path / "out.npz").exists()
