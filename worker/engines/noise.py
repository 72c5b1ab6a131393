"""The pool's counter-based noise: a hash of (seed, choice, position, token id), the same on every machine.

Definition, all arithmetic modulo 2**64, G = 0x9E3779B97F4A7C15, mix = the finaliser of SplitMix64 (Steele,
Lea, Flood: Fast splittable pseudorandom number generators, 2014):

    k0 = mix(seed xor 0x706F746C75636B31)        # "potluck1"
    k1 = mix(k0 + G * (choice + 1))
    k2 = mix(k1 + G * (position + 1))
    hash64 = mix(k2 + G * (token_id + 1))

Position is the index of the output token within its choice, delivered prefix counted. Test vectors stand in
tests/test_sampling.py; changing any of this changes every sampled answer of the pool.
"""

GOLDEN = 0x9E3779B97F4A7C15
MULTIPLIER_1 = 0xBF58476D1CE4E5B9
MULTIPLIER_2 = 0x94D049BB133111EB
DOMAIN = 0x706F746C75636B31
MASK = (1 << 64) - 1


def mix(value: int) -> int:
    value = ((value ^ (value >> 30)) * MULTIPLIER_1) & MASK
    value = ((value ^ (value >> 27)) * MULTIPLIER_2) & MASK
    return value ^ (value >> 31)


def stream(seed: int, choice: int, position: int) -> int:
    """k2 above: what all token ids of one position share."""
    key = mix((seed ^ DOMAIN) & MASK)
    key = mix((key + GOLDEN * (choice + 1)) & MASK)
    return mix((key + GOLDEN * (position + 1)) & MASK)


def hash64(seed: int, choice: int, position: int, token_id: int) -> int:
    return mix((stream(seed, choice, position) + GOLDEN * (token_id + 1)) & MASK)
