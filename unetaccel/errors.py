"""The errors a user can meet. Each message says what came, what is allowed and what to do next."""


class UnetAccelError(Exception):
    """Base of everything this package raises on purpose."""


class UnsupportedModelError(UnetAccelError, TypeError):
    """The pipeline or U-Net is of a kind, or in a state, that cannot be accelerated."""


class AlreadyAppliedError(UnetAccelError, RuntimeError):
    """The pipeline is accelerated already."""


class SettingError(UnetAccelError, ValueError):
    """A setting of a method is out of range or unknown."""


def check_count(name: str, value: object) -> None:
    """Raise ``SettingError`` unless ``value`` is an int of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise SettingError(f"{name} must be an int of at least 1, got {value!r}")


class WeightsError(UnetAccelError, OSError):
    """A model folder or weight file is missing, damaged or not what it should be."""


class CheckError(UnetAccelError, AssertionError):
    """A variant computed something else than its reference, so nothing of it is reported."""
