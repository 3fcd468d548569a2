"""Decoding, geometry and values: against formulas, timm, and stated distributions."""

import numpy as np
import pytest
from image_helpers import encode
from PIL import Image

from vit_jax.errors import UserError
from vit_jax.families.preprocess import Preprocess
from vit_jax.input_pipeline import transforms as tr

SOLID = np.tile(np.array([200, 60, 20], np.uint8), (4, 6, 1))
SIXTEEN = np.full((4, 6), 0x7FC0, np.uint16)


def rgb(red: int, green: int, blue: int) -> np.ndarray:
    return np.tile(np.array([red, green, blue], np.uint8), (4, 6, 1))


@pytest.mark.parametrize(
    ("image", "file_format", "expected", "tolerance"),
    [
        (SOLID, "png", SOLID, 0),
        (SOLID, "jpeg", SOLID, 3),
        (SOLID, "bmp", SOLID, 0),
        (Image.fromarray(SOLID), "webp", SOLID, 8),
        (SOLID[..., 0], "png", rgb(200, 200, 200), 0),
        (SOLID[..., 0], "jpeg", rgb(200, 200, 200), 1),
        (Image.fromarray(SOLID).quantize(4), "png", SOLID, 0),
        (Image.fromarray(SOLID).quantize(4), "gif", SOLID, 0),
        (np.dstack([SOLID, np.full((4, 6), 9, np.uint8)]), "png", SOLID, 0),
        (Image.fromarray(SOLID[..., 0]).convert("LA"), "png", rgb(200, 200, 200), 0),
        (Image.fromarray(SOLID).convert("CMYK"), "jpeg", SOLID, 4),
        (SIXTEEN, "png", rgb(127, 127, 127), 0),
        (SIXTEEN, "tiff", rgb(127, 127, 127), 0),
        (Image.fromarray(np.eye(4, 6) > 0), "png", np.eye(4, 6)[..., None] * rgb(255, 255, 255), 0),
    ],
)
def test_decode(image, file_format, expected, tolerance):
    decoded = tr.decode_image(encode(image, file_format))
    assert decoded.dtype == np.uint8
    assert decoded.shape == expected.shape
    assert np.abs(decoded.astype(int) - expected).max() <= tolerance


@pytest.mark.parametrize("orientation", range(1, 9))
def test_decode_turns_upright(orientation):
    stored = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.swapaxes(0, 1),
        6: np.rot90(stored, -1),
        7: stored[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(stored),
    }[orientation]
    np.testing.assert_array_equal(tr.decode_image(encode(stored, "png", exif=exif)), upright)


def test_decode_refuses_what_is_no_whole_image(photos):
    jpeg = encode(photos[0], "jpeg")
    png = encode(photos[0][:20, :20])
    broken = png[:60] + b"\x00" * 20 + png[80:]
    for bad in (b"", b"not an image", jpeg[: len(jpeg) // 2], png[:-30], broken):
        with pytest.raises(UserError, match=r"cannot decode folder/cat\.jpg"):
            tr.Decode()({"image": bad, "name": "folder/cat.jpg"})


def bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """`tf.image.resize`'s formula in float64: half-pixel centres, edges clamped."""

    def weights(new: int, old: int) -> np.ndarray:
        place = (np.arange(new) + 0.5) * old / new - 0.5
        low = np.floor(place).astype(int)
        matrix = np.zeros((new, old))
        for row, (left, part) in enumerate(zip(low, place - low, strict=True)):
            matrix[row, np.clip(left, 0, old - 1)] += 1 - part
            matrix[row, np.clip(left + 1, 0, old - 1)] += part
        return matrix

    rows, columns = weights(height, image.shape[0]), weights(width, image.shape[1])
    stretched = np.tensordot(rows, image.astype(np.float64), axes=1)
    return np.einsum("xw,ywc->yxc", columns, stretched, optimize=True)


SHAPES = [(224, 224), (16, 24), (427, 640), (500, 700), (1, 1), (384, 7)]


@pytest.mark.parametrize("shape", SHAPES)
def test_resize_is_bilinear_without_antialiasing(photos, shape):
    resized = tr.resize_bilinear(photos[0], *shape)
    assert resized.dtype == np.float32
    np.testing.assert_allclose(resized, bilinear(photos[0], *shape), rtol=0, atol=2e-3)


def test_resize_check_can_fail(photos):
    """Negative control: antialiasing, or rounding to whole values, is seen."""
    expected = bilinear(photos[0], 224, 224)
    smooth = np.asarray(Image.fromarray(photos[0]).resize((224, 224), Image.Resampling.BILINEAR))
    assert np.abs(smooth - expected).max() > 10
    assert np.abs(np.round(expected) - expected).max() > 0.4


@pytest.mark.parametrize("shape", [(100, 150), (30, 300), (1, 1), (3, 2), (224, 224)])
def test_inception_crop_stays_within_its_bounds(shape):
    crop, rng = tr.InceptionCrop(8), np.random.default_rng(0)
    height, width = shape
    whole = (0, 0, height, width)
    for _ in range(500):
        window = crop.window(height, width, rng)
        top, left, h, w = window
        assert min(top, left) >= 0
        assert top + h <= height
        assert left + w <= width
        if window != whole:
            assert 0.05 * height * width <= h * w <= height * width
            assert abs(w - h * np.clip(w / h, 0.75, 1.33)) <= 0.5  # Up to rounding the width.


def test_inception_crop_distribution():
    """On a square: ratio uniform; height uniform given the ratio; places uniform."""
    crop, rng, side = tr.InceptionCrop(8), np.random.default_rng(1), 1000
    windows = np.array([crop.window(side, side, rng) for _ in range(4000)])
    top, left, height, width = windows.T
    ratio = width / height
    low = np.sqrt(0.05 * side**2 / ratio)
    high = np.minimum(np.sqrt(side**2 / ratio), np.minimum(side, side / ratio))
    spare = side - height
    some = spare > 20
    for sample in (
        (ratio - 0.75) / (1.33 - 0.75),
        (height - low) / (high - low),
        top[some] / spare[some],
        left[some] / (side - width[some]).clip(1),
    ):
        sample = sample[np.isfinite(sample)]
        tops = np.quantile(sample, [0.1, 0.25, 0.5, 0.75, 0.9])
        np.testing.assert_allclose(tops, [0.1, 0.25, 0.5, 0.75, 0.9], atol=0.035)


def test_inception_crop_resizes_its_window(photos):
    image = photos[0]
    cropped = tr.InceptionCrop(32)({"image": image}, np.random.default_rng(5))["image"]
    top, left, height, width = tr.InceptionCrop(32).window(427, 640, np.random.default_rng(5))
    window = image[top : top + height, left : left + width]
    np.testing.assert_allclose(cropped, bilinear(window, 32, 32), rtol=0, atol=2e-3)


def test_inception_crop_lies_where_tensorflow_puts_it():
    """`sample_distorted_bounding_box` never draws the last place; a full side starts at 0."""
    crop, rng = tr.InceptionCrop(2, area_min=0.4), np.random.default_rng(0)
    windows = np.array([crop.window(6, 7, rng) for _ in range(4000)])
    for spare, place in ((6 - windows[:, 2], windows[:, 0]), (7 - windows[:, 3], windows[:, 1])):
        for count in np.unique(spare):
            assert set(place[spare == count]) == set(range(max(count, 1)))


def test_inception_crop_counts_windows_as_tensorflow():
    """Every window's probability, enumerated for two ratios from the kernel's description."""
    rng, crop = np.random.default_rng(0), tr.InceptionCrop(2, ratio_min=1.0, ratio_max=1.0)
    windows = [crop.window(8, 5, rng)[2:] for _ in range(6000)]
    # Areas of 2 to 40; sqrt(2) rounds to 1, whose area is too small and becomes 2; the width of
    # 5 bounds the height. So 2 comes from 1 and 2.
    shapes, counts = np.unique([f"{h}x{w}" for h, w in windows], return_counts=True)
    assert shapes.tolist() == ["2x2", "3x3", "4x4", "5x5"]
    np.testing.assert_allclose(counts / 6000, [0.4, 0.2, 0.2, 0.2], atol=0.025)


def test_inception_crop_takes_the_whole_image_where_nothing_fits():
    crop = tr.InceptionCrop(2, area_min=0.9)
    assert crop.window(10, 100, np.random.default_rng(0)) == (0, 0, 10, 100)


def test_random_resized_crop_draws_as_torchvision():
    """Quantiles of 4,000 windows of each, within 4 % of the side."""
    import torch
    from torchvision.transforms import RandomResizedCrop

    torch.manual_seed(0)
    rng, image = np.random.default_rng(0), Image.new("RGB", (150, 100))
    crop = tr.RandomResizedCrop(8)
    ours = np.array([crop.window(100, 150, rng) for _ in range(4000)])
    theirs = np.array(
        [RandomResizedCrop.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(4000)]
    )
    quantiles = np.linspace(0, 1, 11)[1:-1]
    np.testing.assert_allclose(
        np.quantile(ours, quantiles, axis=0), np.quantile(theirs, quantiles, axis=0), atol=5
    )
    for shape, window in (((10, 100), (0, 43, 10, 13)), ((100, 10), (43, 0, 13, 10))):
        assert tr.RandomResizedCrop(8, area_min=0.9).window(*shape, rng) == window


def test_random_resized_crop_resizes_its_window(photos):
    import torchvision.transforms.functional as reference
    from torchvision.transforms import InterpolationMode

    crop = tr.RandomResizedCrop(32)
    ours = crop({"image": photos[0]}, np.random.default_rng(5))["image"]
    window = crop.window(427, 640, np.random.default_rng(5))
    theirs = reference.resized_crop(
        Image.fromarray(photos[0]), *window, (32, 32), InterpolationMode.BICUBIC
    )
    np.testing.assert_array_equal(ours, np.asarray(theirs))


@pytest.mark.parametrize("portrait", [False, True])
@pytest.mark.parametrize("size", [64, 500])
def test_shortest_side_is_torchvisions(photos, size, portrait):
    import torchvision.transforms.functional as reference
    from torchvision.transforms import InterpolationMode

    image = np.ascontiguousarray(photos[0].swapaxes(0, 1) if portrait else photos[0])
    ours = tr.Resize(size, "bicubic", "shortest")({"image": image})["image"]
    theirs = reference.resize(Image.fromarray(image), size, InterpolationMode.BICUBIC)
    np.testing.assert_array_equal(ours, np.asarray(theirs))


def test_mean_std_is_torchvisions(photos):
    from torchvision.transforms import Compose, Normalize, ToTensor

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    theirs = (
        Compose([ToTensor(), Normalize(mean, std)])(Image.fromarray(photos[0]))
        .numpy()
        .transpose(1, 2, 0)
    )
    ours = tr.MeanStd(mean, std)({"image": photos[0]})["image"]
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


def test_flip():
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    rng = np.random.default_rng(0)
    seen = [tr.Flip()({"image": image}, rng)["image"] for _ in range(1000)]
    flipped = [np.array_equal(one, image[:, ::-1]) for one in seen]
    assert all(np.array_equal(one, image) for one, f in zip(seen, flipped, strict=True) if not f)
    assert 430 < sum(flipped) < 570


def test_shift_moves_by_whole_pixels_and_fills_with_zeros():
    image = np.zeros((5, 5, 1), np.uint8)
    image[2, 2] = 7
    rng = np.random.default_rng(0)
    places = set()
    for _ in range(300):
        shifted = tr.RandomShift(1)({"image": image}, rng)["image"]
        assert shifted.shape == image.shape
        assert shifted.sum() == 7
        places.add(tuple(int(i) for i in np.argwhere(shifted[..., 0])[0]))
    assert places == {(y, x) for y in (1, 2, 3) for x in (1, 2, 3)}
    ones = np.ones((5, 5, 1), np.uint8)
    sums = {int(tr.RandomShift(1)({"image": ones}, rng)["image"].sum()) for _ in range(100)}
    assert sums == {25, 20, 16}


def test_rotation_turns_about_the_centre():
    bar = np.zeros((41, 41, 3), np.uint8)
    bar[20, 5:36] = 255
    angles = []
    for seed in range(200):
        turned = tr.RandomRotation(12)({"image": bar}, np.random.default_rng(seed))["image"]
        y, x = np.nonzero(turned[..., 0] > 100)
        assert abs(y.mean() - 20) < 0.5
        assert abs(x.mean() - 20) < 0.5
        angles.append(np.degrees(np.arctan2(*np.linalg.lstsq(x[:, None] - 20.0, y - 20)[0], 1)))
    assert max(np.abs(angles)) <= 12.5
    assert max(angles) > 10
    assert min(angles) < -10


def test_random_transforms_ask_for_a_generator():
    for transform in (tr.InceptionCrop(2), tr.Flip(), tr.RandomShift(1), tr.RandomCrop(2)):
        with pytest.raises(TypeError, match="is random"):
            transform({"image": np.zeros((4, 4, 3), np.uint8)})


def test_value_range_and_one_hot():
    record = {"image": np.array([[[0, 255, 51]]], np.uint8), "label": 2, "name": "x"}
    example = tr.Chain((tr.ValueRange(), tr.OneHot(4)))(record)
    np.testing.assert_allclose(example["image"], [[[-1, 1, -0.6]]], atol=1e-7)
    np.testing.assert_array_equal(example["label"], [0, 0, 1, 0])
    assert example.keys() == {"image", "label"}
    assert {v.dtype for v in example.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("make", [tr.ValueRange, lambda p: tr.MeanStd((0.5,) * 3, (0.2,) * 3, p)])
def test_normalising_in_place_is_the_same_and_only_where_it_may(photos, make):
    image = tr.resize_bilinear(photos[0], 16, 24)
    kept, frozen = image.copy(), image.copy()
    frozen.flags.writeable = False
    expected = make(False)({"image": image})["image"]
    np.testing.assert_array_equal(image, kept)
    assert expected.flags.c_contiguous
    for other in (frozen, kept[:, ::-1].copy()[:, ::-1], kept.astype(np.float64), image):
        np.testing.assert_array_equal(make(True)({"image": other})["image"], expected)
    np.testing.assert_array_equal(frozen, kept)
    np.testing.assert_array_equal(image, expected)  # This one was ours.


@pytest.mark.parametrize("crop", [0.9, 0.875, 1.0, 0.95, 1.13])
@pytest.mark.parametrize("method", ["bicubic", "bilinear"])
@pytest.mark.parametrize("portrait", [False, True])
def test_preprocess_is_timms(photos, crop, method, portrait):
    from timm.data import create_transform

    image = np.ascontiguousarray(photos[0].swapaxes(0, 1) if portrait else photos[0])
    spec = Preprocess(
        size=224,
        crop=crop,
        resize="shortest",
        method=method,
        antialias=True,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )
    theirs = create_transform(
        224, interpolation=method, crop_pct=crop, mean=spec.mean, std=spec.std
    )(Image.fromarray(image))
    expected = theirs.numpy().transpose(1, 2, 0)
    ours = tr.preprocess_image(image, spec)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)


def test_preprocess_official(photos):
    ours = tr.preprocess_image(photos[1], Preprocess(size=64))
    expected = bilinear(photos[1], 64, 64) / 127.5 - 1
    np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-5)
    as_in_training = tr.Chain((tr.Resize(64), tr.ValueRange()))({"image": photos[1]})["image"]
    np.testing.assert_array_equal(ours, as_in_training)


@pytest.mark.parametrize(
    ("image", "spec", "message"),
    [
        (np.zeros((4, 4), np.uint8), Preprocess(), r"uint8 \[height, width, 3\].*\[4, 4\]"),
        (np.zeros((4, 4, 3), np.float32), Preprocess(), "float32"),
        (SOLID, Preprocess(resize="shortest", crop=0.0), "crop must be .* above 0, got 0.0"),
        (SOLID, Preprocess(method="bicubic"), "bicubic .*without antialiasing"),
    ],
)
def test_preprocess_refuses(image, spec, message):
    with pytest.raises(UserError, match=message):
        tr.preprocess_image(image, spec)
