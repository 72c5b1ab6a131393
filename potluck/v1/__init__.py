"""Generated from `proto/potluck/v1` by `scripts/generate`; `tests/test_house.py` checks that it is fresh."""
