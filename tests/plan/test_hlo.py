"""Reading compiled programs: what counts as traffic, how often, and at what size."""

import jax
import jax.numpy as jnp
import pytest

from vit_jax.plan import hlo, traffic

LOOP = """
HloModule loop

%body (p: (s32[], f32[16,128])) -> (s32[], f32[16,128]) {
  %p = (s32[], f32[16,128]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[16,128]{1,0} get-tuple-element(%p), index=1
  %y = f32[16,128]{1,0} negate(%x), backend_config={"estimated_cycles":"10"}
  ROOT %t = (s32[], f32[16,128]{1,0}) tuple(%i, %y)
}

%cond (p: (s32[], f32[16,128])) -> pred[] {
  %p = (s32[], f32[16,128]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %n = s32[] constant(7)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (a: (s32[], f32[16,128])) -> (s32[], f32[16,128]) {
  %a = (s32[], f32[16,128]{1,0}) parameter(0)
  ROOT %w = (s32[], f32[16,128]{1,0}) while(%a), condition=%cond, body=%bodyTRIPS
}
"""


def entry(*lines):
    return "\n".join(["HloModule m", "", "ENTRY %main (a: f32[]) -> f32[] {", *lines, "}"])


def hbm(text):
    return traffic.count(text).hbm_bytes


@pytest.mark.parametrize("known", ["", ', backend_config={"known_trip_count":{"n":"7"}}'])
def test_a_loop_counts_as_often_as_it_runs(known):
    counted = traffic.count(LOOP.replace("TRIPS", known))
    assert counted.hbm_bytes == 7 * 2 * 16 * 128 * 4
    assert counted.cycles == 70
    assert counted.unknown_loops == 0


def test_a_loop_of_unknown_length_is_said_to_be():
    text = LOOP.replace("TRIPS", "").replace("s32[] constant(7)", "s32[] add(%i, %i)")
    assert traffic.count(text).unknown_loops == 1


def test_instructions_that_are_not_understood_are_counted():
    lines = ["  %a = f32[8]{0} parameter(0)", "  ROOT %b = q7[8]{0} convert(%a)"]
    assert traffic.count(entry(*lines)).unread == 1
    assert traffic.count(entry(*lines).replace("q7", "bf16")).unread == 0
    assert traffic.count(entry(lines[0], "  ROOT %b = f32[8]{0} ?")).unread == 1


@pytest.mark.parametrize(
    ("array", "size"),
    [
        ("f32[197,768]{1,0:T(8,128)}", 200 * 768 * 4),
        ("bf16[64,197,64]{2,1,0:T(8,128)(2,1)}", 64 * 200 * 128 * 2),
        ("f32[768,12,64]{0,2,1:T(8,128)}", 768 * 12 * 64 * 4),
        ("bf16[100]{0:T(1024)(128)(2,1)}", 1024 * 2),
        ("pred[3,5]{1,0}", 15),
        ("f32[]", 4),
    ],
)
def test_tiles_are_padded(array, size):
    (found,) = hlo.arrays(array)
    assert found.num_bytes == size


def test_on_chip_operands_do_not_count():
    lines = [
        "  %a = f32[8,128]{1,0:T(8,128)} parameter(0)",
        "  %b = f32[8,128]{1,0:T(8,128)S(1)} negate(%a)",
        "  ROOT %c = f32[8,128]{1,0:T(8,128)} add(%b, %b)",
    ]
    assert hbm(entry(*lines)) == 2 * 4096
    assert hbm(entry(*lines).replace("S(1)", "")) == 5 * 4096


def test_a_fusion_reads_the_slice_that_it_looks_at():
    fused = """
%fused (p: f32[64,128]) -> f32[8,128] {
  %p = f32[64,128]{1,0} parameter(0)
  %s = f32[8,128]{1,0} slice(%p), slice={[0:8], [0:128]}
  ROOT %n = f32[8,128]{1,0} negate(%s)
}
"""
    main = entry(
        "  %a = f32[64,128]{1,0} parameter(0)",
        "  ROOT %f = f32[8,128]{1,0} fusion(%a), kind=kLoop, calls=%fused",
    )
    assert hbm(fused + main) == 2 * 8 * 128 * 4


def test_an_update_in_place_moves_the_update():
    fused = """
%fused (p: f32[64,128], u: f32[8,128]) -> f32[64,128] {
  %p = f32[64,128]{1,0} parameter(0)
  %u = f32[8,128]{1,0} parameter(1)
  %z = s32[] constant(0)
  ROOT %d = f32[64,128]{1,0} dynamic-update-slice(%p, %u, %z, %z)
}
"""
    main = entry(
        "  %a = f32[64,128]{1,0} parameter(0)",
        "  %b = f32[8,128]{1,0} parameter(1)",
        "  ROOT %f = f32[64,128]{1,0} fusion(%a, %b), kind=kLoop, calls=%fused",
    )
    assert hbm(fused + main) == 2 * 8 * 128 * 4


def test_collectives_by_kind_count_and_bytes():
    text = entry(
        "  %a = f32[16,128]{1,0} parameter(0)",
        "  %r = f32[16,128]{1,0} all-reduce(%a), to_apply=%add",
        "  %s = (f32[16,128]{1,0}, f32[64,128]{1,0}) all-gather-start(%r), dimensions={0}",
        "  ROOT %g = f32[64,128]{1,0} all-gather-done(%s)",
    )
    assert traffic.count(text).collectives == {
        "all-reduce": (1, 16 * 128 * 4),
        "all-gather": (1, 64 * 128 * 4),
    }


def test_what_goes_between_slices_is_a_collective_of_its_own():
    """In the TPU compiler's form: each chip hands its part to a runtime, and gets the sum back."""
    megascale = (
        'is_host_transfer=true, frontend_attributes={_xla_host_transfer_rendezvous="all-reduce.1",'
        '_xla_megascale_transfer_type="ALL_REDUCE"}'
    )
    arrays = "(f32[16,128]{1,0}, u32[], token[])"
    text = entry(
        "  %a = f32[16,128]{1,0} parameter(0)",
        "  %t = token[] after-all()",
        f"  %s = {arrays} send(%a, %t), channel_id=2, {megascale}",
        f"  %r = {arrays} recv(%t), channel_id=1, {megascale}",
        "  %sd = token[] send-done(%s), channel_id=2",
        "  ROOT %rd = (f32[16,128]{1,0}, token[]) recv-done(%r), channel_id=1",
    )
    counted, size = traffic.count(text), 16 * 128 * 4
    assert counted.collectives == {"all-reduce between slices": (1, size)}
    assert counted.bytes_between_slices == size
    # What is sent is read, and what is received is written.
    assert counted.classes["all-reduce between slices"].hbm_bytes == size
    assert counted.classes["moves"].hbm_bytes == size
    # What a program hands to its own host is no collective.
    host = traffic.count(text.replace("_xla_megascale_transfer_type", "_other"))
    assert (host.collectives, host.bytes_between_slices) == ({}, 0)


def test_a_kernel_counts_the_cycles_that_it_carries():
    call = (
        '  ROOT %k = f32[8,128]{1,0} custom-call(%a), custom_call_target="tpu_custom_call", '
        'frontend_attributes={kernel_metadata={\n"estimated_cycles": "123"\n}}, metadata={}'
    )
    known = traffic.count(entry("  %a = f32[8,128]{1,0} parameter(0)", call))
    assert (known.cycles, known.kernels_unknown) == (123, 0)
    silent = entry("  %a = f32[8,128]{1,0} parameter(0)", call.replace("estimated_cycles", "x"))
    assert traffic.count(silent).kernels_unknown == 1


def test_a_real_program():
    def step(x, w):
        return jax.lax.scan(lambda y, _: (jnp.tanh(y @ w), None), x, length=5)[0]

    shape = jax.ShapeDtypeStruct((32, 32), jnp.float32)
    counted = traffic.count(jax.jit(step).lower(shape, shape).compile().as_text() or "")
    assert counted.unknown_loops == 0
    # Each of five turns reads two matrices and writes one.
    assert counted.hbm_bytes >= 5 * 3 * 32 * 32 * 4


def test_no_entry_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        hlo.parse("HloModule nothing")


ASYNC = """
%start (p: f32[16,128]) -> (f32[16,128], f32[64,128]) {
  %p = f32[16,128]{1,0} parameter(0)
  %g = f32[64,128]{1,0} all-gather(%p), channel_id=7, dimensions={0}
  ROOT %c = (f32[16,128]{1,0}, f32[64,128]{1,0}) custom-call(%g), custom_call_target="Start"
}

%step (p: f32[16,128], a: f32[64,128], b: f32[128,256]) -> (f32[64,256], f32[64,128]) {
  %p = f32[16,128]{1,0} parameter(0)
  %a = f32[64,128]{1,0} parameter(1)
  %b = f32[128,256]{1,0} parameter(2)
  %g = f32[64,128]{1,0} all-gather(%p), channel_id=7, dimensions={0}
  %y = f32[64,256]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %t = (f32[64,256]{1,0}, f32[64,128]{1,0}) tuple(%y, %g)
}
"""


def test_a_collective_in_several_fusions_counts_once():
    """As TPUs have it: begun in one fusion, going on while another one multiplies."""
    main = entry(
        "  %p = f32[16,128]{1,0} parameter(0)",
        "  %a = f32[64,128]{1,0} parameter(1)",
        "  %b = f32[128,256]{1,0} parameter(2)",
        "  %s = (f32[16,128]{1,0}, f32[64,128]{1,0}) fusion(%p), kind=kCustom, calls=%start",
        "  ROOT %f = (f32[64,256]{1,0}, f32[64,128]{1,0}) fusion(%p, %a, %b), kind=kOutput, "
        'calls=%step, backend_config={"estimated_cycles":"90"}',
    )
    counted = traffic.count(ASYNC + main)
    assert counted.collectives == {"all-gather": (1, 64 * 128 * 4)}
    assert counted.classes["matrix products"].cycles == 90
    assert counted.classes["all-gather"].cycles == 0
