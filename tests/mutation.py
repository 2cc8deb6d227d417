"""Damaged bodies, for the fuzzers of decoders and of the whole service."""

import random

MARKS = (b"\xff", b"\x00", b"\x7f", b"\x80", b"[", b"{", b'"', b"NaN", b"1e999", b"null", b"\n", b"-", b"\x1f\x8b")
"""What readers trip over."""


def mutated(body: bytes, chance: random.Random) -> bytes:
    """A body with a few bytes replaced, cut out, doubled, moved, or repeated many times."""
    mutant = bytearray(body)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 6))):
        at, size = chance.randrange(len(mutant) + 1), chance.choice((1, 1, 1, 2, 4, 8, 30))
        kind = chance.randrange(8)
        if kind == 0:
            mutant[at : at + size] = chance.randbytes(size)
        elif kind == 1:
            del mutant[at : at + size]
        elif kind == 2:
            mutant[at:at] = mutant[at : at + size]
        elif kind == 3:
            mutant[at : at + size] = chance.choice(MARKS) * size
        elif kind == 4 and len(mutant) < 2**14:
            mutant[at:at] = mutant[at : at + size] * chance.choice((2, 10, 100, 1000))
        elif kind == 5:
            other = chance.randrange(len(mutant) + 1)
            mutant[at:at] = mutant[other : other + size]
        elif kind == 6:
            del mutant[at:]
        elif at < len(mutant):
            mutant[at] ^= 1 << chance.randrange(8)
    return bytes(mutant)
