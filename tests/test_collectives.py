"""What devices tell each other, counted in a program's text; `tests/sharding` counts in real ones."""

from benchmarks.collectives import Collective, collectives

PROGRAM = """\
HloModule step

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%all-reduce-scatter.1 (p: bf16[64,8]) -> bf16[8,8] {
  %p = bf16[64,8]{1,0} parameter(0)
  %reduced = bf16[64,8]{1,0} all-reduce(%p), channel_id=1, to_apply=%add
  ROOT %slice = bf16[8,8]{1,0} slice(%reduced), slice={[0:8], [0:8]}
}

%updates (q: f32[8]) -> f32[64] {
  %q = f32[8]{0} parameter(0)
  ROOT %gathered = f32[64]{0} all-gather(%q), channel_id=2, dimensions={0}
}

%waits (r: f32[8]) -> f32[64] {
  %r = f32[8]{0} parameter(0)
  ROOT %padded = f32[64]{0} broadcast(%r), dimensions={0}
}

%piece.1 (s: s32[2]) -> s32[16] {
  %s = s32[2]{0} parameter(0)
  ROOT %rows = s32[16]{0} all-gather(%s), channel_id=3, dimensions={0}
}

%piece.2 (t: s32[2]) -> s32[16] {
  %t = s32[2]{0} parameter(0)
  ROOT %rows.2 = s32[16]{0} all-gather(%t), channel_id=3, dimensions={0}
}

ENTRY %main (x: bf16[64,8], y: f32[8], z: f32[32], i: s32[2], c: pred[]) -> f32[64] {
  %x = bf16[64,8]{1,0} parameter(0)
  %y = f32[8]{0} parameter(1)
  %z = f32[32]{0} parameter(2)
  %i = s32[2]{0} parameter(3)
  %c = pred[] parameter(4)
  %part = bf16[8,8]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
  %scattered = f32[4]{0} reduce-scatter(%z), channel_id=4, dimensions={0}, to_apply=%add
  %both = (f32[8]{0}, f32[]) all-reduce(%y, %y), channel_id=5, to_apply=%add
  %first = s32[16]{0} fusion(%i), kind=kLoop, calls=%piece.1
  %second = s32[16]{0} fusion(%i), kind=kLoop, calls=%piece.2
  ROOT %out = f32[64]{0} conditional(%c, %y, %y), branch_computations={%waits, %updates}
}
"""


def test_each_array_counts_once_in_the_branch_that_is_taken():
    always = [
        Collective("all-gather", "s32", (16,), 1),  # in two pieces, on one channel
        Collective("all-reduce", "f32", (), 1),
        Collective("all-reduce", "f32", (8,), 1),
        Collective("reduce-scatter", "bf16", (64, 8), 1),  # a fusion of a sum and a slice
        Collective("reduce-scatter", "f32", (32,), 1),
    ]
    assert collectives(PROGRAM, updates=False) == always
    assert collectives(PROGRAM) == sorted([Collective("all-gather", "f32", (64,), 1), *always], key=lambda c: c.kind)


def test_bytes_are_those_of_the_whole_array():
    by_shape = {found.shape: found.bytes for found in collectives(PROGRAM)}
    assert by_shape[(64, 8)] == 2 * 64 * 8
    assert by_shape[(64,)] == 4 * 64
