import pytest
from timm.data import ImageNetInfo

from vit_jax import class_names


@pytest.mark.parametrize(("subset", "size"), [("imagenet-1k", 1000), ("imagenet-21k-goog", 21843)])
def test_names_and_ids_are_timms_own_in_its_order(subset, size):
    info = ImageNetInfo(subset)
    assert class_names.wordnet_ids(size) == info.label_names()
    assert class_names.class_names(size) == info.label_descriptions()


def test_landmarks():
    names = class_names.class_names(1000)
    assert names is not None
    assert names[0] == "tench, Tinca tinca"
    assert names[207] == "golden retriever"
    assert names[999] == "toilet tissue, toilet paper, bathroom tissue"


@pytest.mark.parametrize("size", [0, 10, 999, 1001, 21841])
def test_other_sizes_have_no_names(size):
    assert class_names.class_names(size) is None
    assert class_names.wordnet_ids(size) is None
