"""unetaccel makes pretrained diffusion U-Nets in diffusers faster, without retraining them.

>>> handle = unetaccel.apply(pipe, unetaccel.DeepCache(interval=3))
>>> pipe("a prompt"); print(handle.summary()); handle.remove()
"""

from .calibrate import calibrate
from .errors import AlreadyAppliedError, SettingError, UnetAccelError, UnsupportedModelError, WeightsError
from .handle import Handle, Plan
from .methods import Calibrated, DeepCache, FreeU, GuidanceReuse, ScaleLong, SkipTuning
from .patch import apply
from .profile import Profile, load_profile, save_profile
from .straddling import fold_errors
from .summary import Summary
from .tune import tune
from .tuning.tuned import Tuned
from .weights import save_learned

__version__ = "0.1.0"

__all__ = [
    "AlreadyAppliedError",
    "Calibrated",
    "DeepCache",
    "FreeU",
    "GuidanceReuse",
    "Handle",
    "Plan",
    "Profile",
    "ScaleLong",
    "SettingError",
    "SkipTuning",
    "Summary",
    "Tuned",
    "UnetAccelError",
    "UnsupportedModelError",
    "WeightsError",
    "apply",
    "calibrate",
    "fold_errors",
    "load_profile",
    "save_learned",
    "save_profile",
    "tune",
]
