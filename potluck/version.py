"""Which Potluck this is."""


def version() -> str:
    """The installed version, e.g. "0.1.0"."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("potluck")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "0.0.0"
