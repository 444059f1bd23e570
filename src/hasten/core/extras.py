"""Error for a source format whose library isn't installed."""

from hasten.errors import InputError


def missing_extra(what: str, extra: str) -> InputError:
    """Return an error that says which extra to install.

    Args:
        what: Thing that was asked for, with its article: "a torch model".
        extra: Name of the extra: "torch".
    """
    return InputError(f"{what} needs the extra: pip install 'hasten[{extra}]'")
