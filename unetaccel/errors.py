"""The errors a user can meet. Each message says what came, what is allowed and what to do next."""


class UnetAccelError(Exception):
    """Base of everything this package raises on purpose."""


class UnsupportedModelError(UnetAccelError, TypeError):
    """The pipeline or U-Net is of a kind, or in a state, that cannot be accelerated."""


class AlreadyAppliedError(UnetAccelError, RuntimeError):
    """The pipeline is accelerated already."""


class SettingError(UnetAccelError, ValueError):
    """A setting of a method is out of range or unknown."""


class WeightsError(UnetAccelError, OSError):
    """A model folder or weight file is missing, damaged or not what it should be."""
