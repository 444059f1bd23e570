"""What to say where a library that a source format needs isn't installed."""

from hasten.errors import InputError


def missing_extra(what: str, extra: str) -> InputError:
    """Return the error that names the extra.

    Args:
        what: What was asked for, with its article: "a torch model".
        extra: The extra's name: "torch".
    """
    return InputError(f"{what} needs the extra: pip install 'hasten[{extra}]'")
