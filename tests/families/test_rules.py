import ml_dtypes
import numpy as np
import pytest
from checkpoint_helpers import SHAPES
from hypothesis import given, settings
from hypothesis import strategies as st
from shapes import param_shapes

from vit_jax.checkpoint.names import _rows
from vit_jax.errors import UserError
from vit_jax.families import released
from vit_jax.families.rules import MAX_LISTED, Exported, Imported, listed, rule, under

QKV = rule("qkv.weight", ("q/kernel", "k/kernel", "v/kernel"), "(n heads d) c -> n c heads d")


def test_tables_nest_like_modules():
    table = under("blocks.3", "block_3", under("attn", "mha", rule("w", ("a", "b"))))
    row = ("blocks.3.attn.w", ("block_3/mha/a", "block_3/mha/b"), "... -> ...", (), False, ())
    assert table == [row]
    assert under("x", "", rule("w", "a"))[0].ours == ("a",)


def test_a_row_has_the_axes_of_the_innermost_module_that_gives_them():
    table = under("a", "a", under("b", "b", QKV, heads=2) + QKV, heads=4)
    weight = np.zeros((24, 5))
    ours = Imported(table, {"a.b.qkv.weight": weight, "a.qkv.weight": weight}, heads=8)
    assert ours["a/b/k/kernel"].shape == (5, 2, 4)
    assert ours["a/k/kernel"].shape == (5, 4, 2)


def test_qkv_is_split_by_part_then_head():
    weight = np.arange(3 * 2 * 4 * 5).reshape(24, 5)
    ours = Imported(QKV, {"qkv.weight": weight}, heads=2)
    assert ours["k/kernel"].shape == (5, 2, 4)
    # part 1 (key), head 1, element 2 is row (1 * 2 + 1) * 4 + 2
    assert ours["k/kernel"][3, 1, 2] == weight[14, 3]
    np.testing.assert_array_equal(Exported(QKV, ours, heads=2)["qkv.weight"], weight)


def test_parts_without_names_must_be_zero_and_are_written_as_zeros():
    table = rule("qkv.bias", ("q", "v"), "(n heads d) -> n heads d", zeros=(1,))
    theirs = np.arange(24.0) * (np.arange(24) // 8 != 1)
    ours = Imported(table, {"qkv.bias": theirs}, heads=2)
    np.testing.assert_array_equal(ours["q"], np.arange(8.0).reshape(2, 4))
    np.testing.assert_array_equal(ours["v"], np.arange(16.0, 24).reshape(2, 4))
    np.testing.assert_array_equal(Exported(table, ours, heads=2)["qkv.bias"], theirs)
    for wrong in (1e-30, np.nan):
        theirs[9] = wrong
        with pytest.raises(UserError, match="expected zeros in part 2 of 3"):
            Imported(table, {"qkv.bias": theirs}, heads=2)["v"]


@pytest.mark.parametrize(
    ("pattern", "shape", "turned"),
    [
        ("(n heads d) c -> n c heads d", (5, 2, 4), (0, 2, 3, 1)),
        ("(n heads d) -> n heads d", (2, 4), (0, 1, 2)),
        ("(n o) (c h w) -> n h w c o", (2, 2, 5, 4), (0, 4, 3, 1, 2)),
        ("(heads n d) c -> n c heads d", (5, 2, 4), (2, 0, 3, 1)),
    ],
)
def test_what_several_of_ours_become_lies_in_one_piece(pattern, shape, turned):
    table = rule("qkv", ("q", "k", "v"), pattern)
    ours = {n: np.random.default_rng(i).standard_normal(shape) for i, n in enumerate("qkv")}
    theirs = Exported(table, ours)["qkv"]
    np.testing.assert_array_equal(
        theirs.ravel(), np.stack([*ours.values()]).transpose(turned).ravel()
    )
    for name, x in Imported(table, {"qkv": theirs}, heads=2, h=2, w=2).items():
        np.testing.assert_array_equal(x, ours[name])
    if "c heads d" in pattern:  # a turned matrix, which its writer lays out without a copy of it
        assert theirs.flags.f_contiguous


def test_names_of_both_sides_are_listed():
    rows = rule("a", "x") + rule("b", "y")
    with pytest.raises(UserError, match=r"(?s)missing: b\n.*unexpected: c, d"):
        Imported(rows, {"a": 1, "c": 2, "d": 3})
    with pytest.raises(UserError, match=r"(?s)missing: x\n.*unexpected: none"):
        Exported(rows, {"y": 1})
    many = [f"name{i}" for i in range(MAX_LISTED + 7)]
    assert listed(many).endswith("… and 7 more")


def test_ignored_names_need_not_be_in_the_table():
    theirs = {"a": np.ones(2), "bn.num_batches_tracked": np.ones(())}
    ours = Imported(rule("a", "x"), theirs, ignore=[r".*\.num_batches_tracked"])
    assert list(ours) == ["x"]


@pytest.mark.parametrize(
    ("table", "theirs", "axes"),
    [
        (rule("w", "k", "o i -> i o"), {"w": np.ones((2, 3, 4))}, {}),
        (QKV, {"qkv.weight": np.ones((25, 4))}, {"heads": 2}),
        (rule("w", "k", "1 1 1 c -> c"), {"w": np.ones((2, 1, 1, 4))}, {}),
    ],
)
def test_wrong_shape_names_tensor_pattern_and_shape(table, theirs, axes):
    name, x = next(iter(theirs.items()))
    with pytest.raises(UserError) as e:
        dict(Imported(table, theirs, **axes))
    assert repr(name) in str(e.value)
    assert table[0].pattern.split("->")[0].strip() in str(e.value)
    assert str(x.shape) in str(e.value)


def test_parts_of_unequal_shape_are_refused():
    ours = {"q/kernel": np.ones((5, 2, 4)), "k/kernel": np.ones((5, 2, 4)), "v/kernel": np.ones(3)}
    with pytest.raises(UserError, match="must have one shape"):
        Exported(QKV, ours, heads=2)["qkv.weight"]


@pytest.mark.parametrize("name", SHAPES)
def test_our_side_of_every_table_is_the_model(name):
    entry = SHAPES[name]
    for head in (True, False):
        names = {n for n in entry["params"] if head or not n.startswith("head/")}
        for table in (_rows(entry["config"], "timm", head=head), released.writing(names)):
            ours = [o for r in table for o in r.ours]
            assert len(ours) == len(set(ours))
            assert set(ours) == names
            assert len({r.theirs for r in table}) == len(table)


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_from_config_alone(name):
    entry = SHAPES[name]
    shapes = {n: tuple(s) for n, s in entry["params"].items()}
    posemb = shapes.get("Transformer/posembed_input/pos_embedding", (1, 0))[1]
    tokens = shapes.get("MixerBlock_0/token_mixing/Dense_0/kernel", (posemb - ("cls" in shapes),))
    got = param_shapes(entry["config"], num_classes=1000, num_patches=tokens[0])
    assert got == shapes
    without = param_shapes(entry["config"], num_classes=0, num_patches=tokens[0])
    assert shapes.keys() - without.keys() == {"head/kernel", "head/bias"}


DTYPES = (np.float32, np.float64, np.float16, np.int8, ml_dtypes.bfloat16)
AXES = "abcd"


@st.composite
def tables_and_arrays(draw):
    """Any table of permutations, merged axes and splits, with arrays that fit it."""
    sizes = {axis: draw(st.integers(1, 4)) for axis in AXES}
    table, theirs = [], {}
    for i in range(draw(st.integers(1, 5))):
        axes = draw(st.permutations(AXES))[: draw(st.integers(1, 4))]
        parts = draw(st.integers(1, 3))
        left = (["n"] if parts > 1 else []) + list(draw(st.permutations(axes)))
        merged = draw(st.integers(0, len(left) - 1))  # these first axes are one on their side
        pattern = f"({' '.join(left[:merged])}) {' '.join(left[merged:])}" if merged else ""
        right = (["n"] if parts > 1 else []) + list(axes)
        pattern = f"{pattern or ' '.join(left)} -> {' '.join(right)}"
        table += rule(f"t{i}", tuple(f"o{i}/{j}" for j in range(parts)), pattern)
        full = [{**sizes, "n": parts}[axis] for axis in left]
        shape = ([int(np.prod(full[:merged]))] if merged else []) + full[merged:]
        dtype = draw(st.sampled_from(DTYPES))
        bits = np.random.default_rng(i).bytes(int(np.prod(shape)) * np.dtype(dtype).itemsize)
        theirs[f"t{i}"] = np.frombuffer(bits, dtype).reshape(shape)
    return table, theirs, sizes


@settings(max_examples=200, deadline=None)
@given(tables_and_arrays())
def test_export_undoes_import_bit_for_bit(case):
    table, theirs, sizes = case
    ours = dict(Imported(table, theirs, **sizes))
    back = dict(Exported(table, ours, **sizes))
    again = dict(Imported(table, back, **sizes))
    assert back.keys() == theirs.keys()
    for got, want in ((back, theirs), (again, ours)):
        for name in want:
            assert got[name].dtype == want[name].dtype
            assert got[name].shape == want[name].shape
            assert got[name].tobytes() == want[name].tobytes()
