"""Mixup and CutMix."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from vit_jax.errors import UserError
from vit_jax.train.mixing import Mixing

N, H, W, K = 8, 12, 10, 5
CASES = (
    [Mixing(mixup_alpha=0.8, per_example=per_example) for per_example in (False, True)]
    + [
        Mixing(mixup_alpha=0.8, cutmix_alpha=1.0, probability=0.7, per_example=per_example)
        for per_example in (False, True)
    ]
    + [Mixing(cutmix_alpha=1.0, per_example=per_example) for per_example in (False, True)]
)


@functools.lru_cache
def compiled(mixing: Mixing):
    return jax.jit(mixing)


def batch() -> dict[str, jax.Array]:
    """Example i is the constant i, of class i mod K."""
    image = jnp.broadcast_to(jnp.arange(N, dtype=jnp.float32)[:, None, None, None], (N, H, W, 3))
    return {"image": image, "label": jax.nn.one_hot(jnp.arange(N) % K, K), "id": jnp.arange(N)}


def own_share(mixed) -> tuple[np.ndarray, np.ndarray]:
    """How much of itself each image [N, H, W] and each label [N] still has."""
    i = np.arange(N)
    partner = (i - 1) % N
    image = np.asarray(mixed["image"])
    assert np.ptp(image, axis=-1).max() == 0  # channels are mixed alike
    pixels = (image[..., 0] - partner[:, None, None]) / (i - partner)[:, None, None]
    label = np.asarray(mixed["label"])
    np.testing.assert_allclose(label.sum(-1), 1, rtol=1e-6)
    own, other = label[i, i % K], label[i, partner % K]
    np.testing.assert_allclose(own + other, 1, rtol=1e-6)
    return pixels, own


@pytest.mark.parametrize("mixing", CASES, ids=str)
def test_labels_are_mixed_as_pixels_are(mixing):
    shares = []
    for seed in range(20):
        mixed = compiled(mixing)(jax.random.key(seed), batch())
        pixels, own = own_share(mixed)
        np.testing.assert_allclose(pixels.mean((1, 2)), own, atol=1e-5)
        np.testing.assert_array_equal(mixed["id"], np.arange(N))
        assert (np.ptp(own) < 1e-6) or mixing.per_example
        if not mixing.mixup_alpha:
            np.testing.assert_allclose(pixels, pixels.round(), atol=1e-6)
        elif not mixing.cutmix_alpha:
            assert np.ptp(pixels, axis=(1, 2)).max() < 1e-5
        shares.append(own)
    assert np.std(shares) > 0.05
    if mixing.per_example and mixing.probability == 1:
        assert np.ptp(shares[0]) > 1e-3


def test_the_cut_is_a_box_within_the_image():
    rows_seen, columns_seen = set(), set()
    for seed in range(60):
        key = jax.random.key(seed)
        pixels, _ = own_share(compiled(CASES[-1])(key, batch()))
        for cut in pixels.round() == 0:
            rows, columns = np.flatnonzero(cut.any(1)), np.flatnonzero(cut.any(0))
            if rows.size:
                assert cut[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
                rows_seen |= {rows[0], rows[-1]}
                columns_seen |= {columns[0], columns[-1]}
    assert {0, H - 1} <= rows_seen
    assert {0, W - 1} <= columns_seen


def test_what_is_drawn():
    """Over many draws: means, the share of batches left alone, and that of CutMix."""
    mixing = Mixing(0.8, 1.0, probability=0.6, switch=0.25, per_example=True)
    pixels, share = jax.jit(lambda key: mixing.weights(key, 20_000, 8, 8))(jax.random.key(0))
    pixels, share = np.asarray(pixels), np.asarray(share)
    np.testing.assert_allclose(pixels.mean((1, 2)), share, atol=1e-6)
    flat = np.ptp(pixels, axis=(1, 2)) < 1e-6
    untouched = share == 1
    # A box may be empty, so that CutMix too leaves images alone: at most where the side of eight
    # pixels is below two, 1 - λ < 1/16.
    cut = 0.6 * 0.25
    assert 0.4 - 0.015 < untouched.mean() < 0.4 + cut / 16 + 0.015
    assert cut * (15 / 16) - 0.015 < (~flat).mean() < cut + 0.015
    mixup = share[flat & ~untouched]
    # Beta(α, α) has mean 1/2 and variance 1 / (4 (2α + 1)).
    np.testing.assert_allclose(mixup.mean(), 0.5, atol=0.02)
    np.testing.assert_allclose(mixup.var(), 1 / (4 * 2.6), atol=0.01)


def test_the_box_has_the_drawn_area_where_the_border_does_not_clip():
    mixing = Mixing(cutmix_alpha=1.0, per_example=True)
    share = jax.jit(lambda key: mixing.weights(key, 20_000, 64, 64)[1])(jax.random.key(1))
    # With a = 1 - λ uniform and s = √a, each side loses s/4 to the border on average; the share cut
    # is E[a (1 - s/4)²] = 1/2 - 1/5 + 1/48.
    np.testing.assert_allclose(1 - np.mean(share), 1 / 2 - 1 / 5 + 1 / 48, atol=0.015)


@pytest.mark.parametrize(
    "mixing", [Mixing(), Mixing(mixup_alpha=1.0, cutmix_alpha=1.0, probability=0.0)], ids=str
)
def test_off(mixing):
    assert not mixing.on
    before = batch()
    after = mixing(jax.random.key(0), before)
    assert all(after[name] is before[name] for name in before)


def test_the_same_key_draws_the_same():
    a, b, c = (compiled(CASES[2])(jax.random.key(seed), batch())["image"] for seed in (3, 3, 4))
    np.testing.assert_array_equal(a, b)
    assert (np.asarray(a) != np.asarray(c)).any()


@pytest.mark.parametrize("mixing", CASES[2:4], ids=str)
def test_a_batch_over_four_devices_is_mixed_as_on_one(mixing):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = NamedSharding(mesh, PartitionSpec("data"))
    rng = np.random.default_rng(0)
    one = {**batch(), "image": jnp.float32(rng.normal(size=(N, H, W, 3)))}
    four = jax.device_put(one, split)
    step = jax.jit(mixing, in_shardings=(None, split), out_shardings=split)
    key = jax.random.key(0)
    expected, got = compiled(mixing)(key, one), step(key, four)
    for name in one:
        np.testing.assert_allclose(got[name], expected[name], atol=1e-6, err_msg=name)
    # Only the images at the seams travel.
    text = str(step.lower(key, four).compile().as_text())
    assert "collective-permute" in text
    assert "all-gather" not in text


@pytest.mark.parametrize(
    "changes",
    [{"mixup_alpha": -1.0}, {"cutmix_alpha": -0.1}, {"probability": 1.1}, {"switch": -0.5}],
    ids=str,
)
def test_bad_settings(changes):
    ((name, value),) = changes.items()
    with pytest.raises(UserError, match=f"config.mixing.{name} must be .*, got {value}"):
        Mixing(**changes)
