"""Augmentations against torchvision, timm and Pillow; exact where no tolerance is stated."""

import dataclasses

import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps

from vit_jax.input_pipeline import augment as aug
from vit_jax.input_pipeline import operations
from vit_jax.input_pipeline import transforms as tr

HEIGHT, WIDTH = 90, 131


class Draws:
    """A generator that draws what it is told."""

    def __init__(self, number: float = 0.0, place: int = 0):
        self.number, self.place = number, place

    def random(self) -> float:
        return self.number

    def uniform(self, low: float, high: float) -> float:
        return low + self.number * (high - low)

    def integers(self, high: int) -> int:
        return min(self.place, high - 1)

    def permutation(self, count: int):
        return range(count)


MINUS, PLUS = Draws(0.0), Draws(0.99)


@pytest.fixture
def photo(photos) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(photos[1][:HEIGHT, :WIDTH]))


def assert_images_equal(left, right) -> None:
    np.testing.assert_array_equal(np.asarray(left), np.asarray(right))


# --- operations and levels -----------------------------------------------------------------------


@pytest.mark.parametrize("magnitude", [0, 5, 9, 17, 30])
@pytest.mark.parametrize("name", sorted(aug.SPACES["torchvision"].levels))
def test_torchvisions_space(photo, name, magnitude):
    from torchvision.transforms import InterpolationMode, RandAugment
    from torchvision.transforms.autoaugment import _apply_op

    space = aug.SPACES["torchvision"]
    theirs = RandAugment()._augmentation_space(31, (HEIGHT, WIDTH))
    assert theirs.keys() == space.levels.keys()
    levels, signed = theirs[name]
    assert signed == space.levels[name].signed
    value = float(levels[magnitude]) if levels.ndim else 0.0
    for sign, draws in ((-1, MINUS), (1, PLUS)) if signed else ((1, PLUS),):
        # torchvision shifts to the other side, which is as likely.
        side = -sign if name.startswith("Translate") else sign
        expected = _apply_op(photo, name, side * value, InterpolationMode.NEAREST, None)
        assert_images_equal(space.apply(photo, name, magnitude / space.top, draws), expected)


TIMMS = {
    "Posterize": "PosterizeIncreasing",
    "Solarize": "SolarizeIncreasing",
    "TranslateX": "TranslateXRel",
    "TranslateY": "TranslateYRel",
    **{name: f"{name}Increasing" for name in ("Color", "Contrast", "Brightness", "Sharpness")},
}


@pytest.mark.parametrize("magnitude", [0, 3, 9, 10])
@pytest.mark.parametrize("name", sorted(aug.SPACES["timm"].levels))
def test_timms_space(photo, name, magnitude, monkeypatch):
    from timm.data import auto_augment

    space = aug.SPACES["timm"]
    theirs = TIMMS.get(name, name)
    hparams = {"img_mean": space.fill, "interpolation": operations.BILINEAR}
    for number, draws in ((0.0, MINUS), (0.99, PLUS)):
        # timm turns positive where it draws little.
        monkeypatch.setattr(auto_augment.random, "random", lambda number=number: 1 - number)
        op = auto_augment.AugmentOp(theirs, prob=1.0, magnitude=magnitude, hparams=hparams)
        ours = space.apply(photo, name, magnitude / 10, draws)
        if (name, magnitude) == ("Posterize", 10):  # No bits: Pillow refuses what timm asks for.
            assert not np.asarray(ours).any()
        else:
            assert_images_equal(ours, op(photo))


def test_timms_operations_are_all_there():
    from timm.data.auto_augment import _RAND_INCREASING_TRANSFORMS

    ours = [TIMMS.get(name, name) for name in aug.SPACES["timm"].levels]
    assert sorted(ours) == sorted(_RAND_INCREASING_TRANSFORMS)


@pytest.mark.parametrize(
    ("name", "strength", "argument"),
    [
        ("Rotate", 1.5, 45.0),
        ("ShearX", 1.0, 0.3),
        ("TranslateX", 1.0, 100.0),
        ("Color", 1.0, 1.9),
        ("Brightness", 1.5, 2.8),
        ("Posterize", 1.0, 4),
        ("Solarize", 0.5, 128),
        ("SolarizeAdd", 1.0, 110),
        ("Cutout", 0.5, 20),
    ],
)
def test_big_visions_levels(photo, name, strength, argument, monkeypatch):
    """The table of its `level_to_arg`, at magnitudes of 5, 10 and 15."""
    seen = []
    monkeypatch.setitem(
        operations.OPERATIONS, name, lambda image, value, canvas: seen.append(value)
    )
    aug.SPACES["big_vision"].apply(photo, name, strength, PLUS)
    assert seen == [pytest.approx(argument)]
    assert len(aug.SPACES["big_vision"].levels) == 16


def test_cutout_is_a_square_about_a_place(photo):
    cut = np.asarray(aug.SPACES["big_vision"].apply(photo, "Cutout", 0.25, Draws(place=15)))
    expected = np.asarray(photo).copy()
    expected[5:25, 5:25] = 128
    assert_images_equal(cut, expected)
    corner = np.asarray(aug.SPACES["big_vision"].apply(photo, "Cutout", 0.25, Draws(place=2)))
    assert (corner[:12, :12] == 128).all()
    assert_images_equal(corner[12:], np.asarray(photo)[12:])


# --- policies ------------------------------------------------------------------------------------


def test_rand_augment_draws_every_operation_alike(photo, monkeypatch):
    drawn, nothing = [], aug.SPACES["torchvision"].draw(photo.size, "Identity", 0.0, PLUS)
    monkeypatch.setattr(
        aug.Space, "draw", lambda self, size, name, s, rng: drawn.append((name, s)) or nothing
    )
    rng = np.random.default_rng(0)
    for _ in range(700):
        aug.RandAugment(2, 15.0)({"image": np.asarray(photo)}, rng)
    names, counts = np.unique([name for name, _ in drawn], return_counts=True)
    assert (len(drawn), len(names)) == (1400, 14)
    assert abs(counts - 100).max() < 40
    assert {strength for _, strength in drawn} == {0.5}

    drawn.clear()
    for _ in range(500):
        aug.RandAugment(2, 9.0, "timm", 0.5)({"image": np.asarray(photo)}, rng)
    assert 420 < len(drawn) < 580  # Half of them happen.
    strengths = np.array([strength for _, strength in drawn])
    assert strengths.max() <= 1.0
    assert abs(strengths.mean() - 0.9) < 0.01
    assert 0.03 < strengths.std() < 0.06


def test_rand_augment_is_its_operations(photo):
    augment, record = aug.RandAugment(1, 30.0), {"image": np.asarray(photo), "label": 3}
    rng, same = np.random.default_rng(4), np.random.default_rng(4)
    space = aug.SPACES["torchvision"]
    out = augment(record, rng)
    name = list(space.levels)[int(same.integers(14))]
    same.random()
    assert_images_equal(out["image"], space.apply(photo, name, 1.0, same))
    assert out["label"] == 3


def test_the_published_policy_is_torchvisions():
    from torchvision.transforms import AutoAugment

    theirs = AutoAugment().policies
    levelled = {"Posterize", "Rotate", "Solarize", "Color", "Contrast", "Sharpness", "ShearX"}
    assert len(theirs) == len(aug.IMAGENET_POLICY) == 25
    for ours, line in zip(aug.IMAGENET_POLICY, theirs, strict=True):
        for (name, probability, level), op in zip(ours, line, strict=True):
            assert (name, probability) == op[:2]
            assert level == op[2] or name not in levelled


@pytest.mark.parametrize("name", ["Posterize", "Rotate", "Solarize", "Color", "ShearX", "Invert"])
def test_auto_augments_levels_are_torchvisions(photo, name):
    from torchvision.transforms import AutoAugment, InterpolationMode
    from torchvision.transforms.autoaugment import _apply_op

    levels, signed = AutoAugment()._augmentation_space(10, (HEIGHT, WIDTH))[name]
    for level in range(10):
        value = float(levels[level]) if levels.ndim else 0.0
        expected = _apply_op(
            photo, name, -value if signed else value, InterpolationMode.NEAREST, None
        )
        ours = aug.AutoAugment((((name, 1.0, level),),))({"image": np.asarray(photo)}, MINUS)
        # torchvision's levels are float32: a blend may round the other way.
        off = np.abs(ours["image"].astype(int) - np.asarray(expected)).max()
        assert off <= (1 if name == "Color" else 0)


def test_auto_augment_keeps_probabilities(photo):
    policy = ((("Invert", 0.3, 0),), (("Identity", 1.0, 0), ("Invert", 0.7, 0)))
    rng, record = np.random.default_rng(0), {"image": np.asarray(photo)[:4, :4]}
    out = [aug.AutoAugment(policy)(record, rng)["image"] for _ in range(1000)]
    inverted = sum(np.array_equal(image, 255 - record["image"]) for image in out)
    assert 440 < inverted < 560


def test_three_augment_is_grey_solarized_or_blurred(photo):
    record = {"image": np.asarray(photo)}
    three = aug.ThreeAugment()
    grey, solarized, blurred = (three(record, Draws(0.5, choice))["image"] for choice in range(3))
    assert_images_equal(grey, ImageOps.grayscale(photo).convert("RGB"))
    assert_images_equal(solarized, ImageOps.solarize(photo))
    assert_images_equal(blurred, photo.filter(ImageFilter.GaussianBlur(1.05)))
    rng, counts = np.random.default_rng(0), np.zeros(3)
    small = {"image": 255 - record["image"][:16, :16]}  # Bright, so that solarizing shows.
    known = [three(small, Draws(0.5, choice))["image"].tobytes() for choice in range(2)]
    for _ in range(600):
        out = three(small, rng)["image"].tobytes()
        counts[known.index(out) if out in known else 2] += 1
    assert abs(counts - 200).max() < 50


# --- colour --------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0.0, 0.2, 0.9])
@pytest.mark.parametrize("kind", ["brightness", "contrast", "saturation", "hue"])
def test_colour_jitter(photo, kind, number):
    import torchvision.transforms.functional as reference

    most = 0.4
    low, high = (-most, most) if kind == "hue" else (1 - most, 1 + most)
    expected = getattr(reference, f"adjust_{kind}")(photo, low + number * (high - low))
    ours = aug.ColorJitter(**{kind: most})({"image": np.asarray(photo)}, Draws(number))
    assert_images_equal(ours["image"], expected)


def test_colour_jitter_varies_its_order(photo):
    jitter, record = aug.ColorJitter(0.9, 0.9, 0.9), {"image": np.asarray(photo)}

    class Ordered(Draws):
        def permutation(self, count):
            return (2, 1, 0, 3)

    plain, other = jitter(record, Draws(0.9)), jitter(record, Ordered(0.9))
    assert not np.array_equal(plain["image"], other["image"])


# --- erasing -------------------------------------------------------------------------------------


def test_random_erasing_draws_timms_windows():
    erasing, rng = aug.RandomErasing(1.0), np.random.default_rng(0)
    windows = np.array([erasing.window(200, 300, rng) for _ in range(3000)])
    top, left, height, width = windows.T
    assert (top + height <= 200).all()
    assert (left + width <= 300).all()
    share, ratio = height * width / 60_000, np.log(height / width)
    # Rounding to pixels moves the bounds a little; tall windows of large area do not fit.
    assert 0.019 < share.min() < 0.022
    assert 0.3 < share.max() < 0.334
    assert abs(np.abs(ratio).max() - np.log(1 / 0.3)) < 0.03
    assert top.min() == left.min() == 0
    assert aug.RandomErasing(1.0, 0.99, 1.0).window(4, 4, rng) is None


@pytest.mark.parametrize("noise", [True, False])
def test_random_erasing_fills_its_window(noise):
    image = np.full((200, 200, 3), 7, np.float32)
    erased, untouched, values = 0, 0, []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        out = aug.RandomErasing(0.5, noise=noise)({"image": image}, rng)["image"]
        assert out.dtype == np.float32
        changed = (out != 7).any(axis=2)
        untouched += not changed.any()
        if changed.any():
            erased += 1
            rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
            assert changed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
            values.append(out[changed].ravel())
    assert (image == 7).all()
    assert 18 < erased < 42
    assert untouched == 60 - erased
    values = np.concatenate(values)
    if noise:
        np.testing.assert_allclose([values.mean(), values.std()], [0, 1], atol=0.01)
    else:
        assert not values.any()


# --- all of them ---------------------------------------------------------------------------------

ALL = [
    aug.RandAugment(),
    aug.RandAugment(2, 9.0, "timm", 0.5),
    aug.RandAugment(2, 15.0, "big_vision"),
    aug.AutoAugment(),
    aug.ThreeAugment(),
    aug.ColorJitter(0.3, 0.3, 0.3, 0.1),
    aug.RandomErasing(1.0),
    tr.RandomResizedCrop(24),
]


@pytest.mark.parametrize("transform", ALL, ids=lambda t: type(t).__name__)
def test_pure_functions_of_image_and_generator(photo, transform):
    for image in (np.asarray(photo)[:40, :48], np.asarray(photo)[:40, :48] * np.float32(0.999)):
        before = image.copy()
        if isinstance(transform, aug.RandomErasing):  # Comes after normalising.
            image = image.astype(np.float32)
            before = image.copy()
        outs = [transform({"image": image}, np.random.default_rng(s))["image"] for s in (5, 5, 6)]
        np.testing.assert_array_equal(image, before)
        np.testing.assert_array_equal(outs[0], outs[1])
        assert outs[0].ndim == 3
    with pytest.raises(TypeError, match="is random"):
        transform({"image": np.asarray(photo)})
    with pytest.raises(dataclasses.FrozenInstanceError):
        transform.size = 3
