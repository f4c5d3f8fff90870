"""apply and remove: putting the accelerated U-Net into a pipeline, and the original back."""

from __future__ import annotations

from os import PathLike

from torch import nn

from .accelerated import AcceleratedUNet, face, faced
from .calls import AcceleratedPipeline, unwatch_calls, watch_calls
from .controlnet import AcceleratedControlNet, controlnet_engine
from .engine import Engine
from .errors import AlreadyAppliedError, SettingError, UnsupportedModelError
from .execution import Execution
from .handle import Handle
from .methods import RECOMMENDED, Calibrated, GuidanceReuse, Method
from .profile import Profile


def apply(
    pipe_or_unet,
    *methods: Method | Profile | str | PathLike,
    replace: bool = False,
    compile: bool | str | dict = False,
    kernels: str = "auto",
    precompute: bool = False,
) -> Handle:
    """Accelerate a diffusers pipeline, or a bare U-Net, with one or more methods.

    The pipeline then works as before, only faster: ``pipe(...)``. The U-Net's modules, weights and
    attributes are not changed. A bare U-Net is not changed either: use ``handle.unet`` instead of it.

    >>> handle = unetaccel.apply(pipe, unetaccel.DeepCache(interval=3, cut=0))
    >>> image = pipe("a red circle on a white background").images[0]
    >>> print(handle.summary())
    >>> handle.remove()

    Args:
        pipe_or_unet: a pipeline with a ``unet``, or a U-Net.
        methods: what to apply, in any order; without any it is ``methods.RECOMMENDED``, a good cache for all models. A
            profile, or the path of one, stands for ``Calibrated(profile)``.
        replace: remove what was applied to it before; without it a second ``apply`` is an error.
        compile: ``"inductor"`` (or True): compile the full and the cached view by ``torch.compile``, one graph each, at their first
            evaluation; a dict is passed to it (``{"mode": "max-autotune"}``). Outputs then equal eager ones up to rounding.
            ``"graphs"``: record both as CUDA graphs and replay them; exact. Where nothing can be recorded (on a CPU, with offload
            hooks, for gradients) evaluations are eager, and ``handle.summary()`` says why.
        kernels: ``"torch"``: PyTorch's own operations throughout. ``"auto"``: on CUDA, where Triton works, a kernel blends the features of a
            forecast. ``"triton"``: kernels also run the concatenation and the norms of the layer at the cut, in full evaluations too,
            which then equal plain ones up to rounding.
        precompute: compute once in a sampling call what its evaluations have in common: the keys and values of cross attention,
            what a ControlNet makes of its picture, and what each layer adds for every timestep (a table of evaluations x batch x summed
            widths); and once per full
            evaluation, where F is held for several, what the layer at the cut makes of F (twice F's size). Outputs then equal
            plain ones up to rounding. Where a part does not apply, ``handle.summary()`` says why. Writes through ``.data``, or
            through an array that shares the memory, leave no mark: after one to weights, the prompt or a ControlNet's picture within
            a call, ``handle.invalidate()``.

    Returns:
        A ``Handle``; as a context manager it removes the methods at the end of the block.

    Raises:
        UnsupportedModelError: no U-Net, one of a kind that is not supported, or one patched by another tool.
        AlreadyAppliedError: accelerated already, and ``replace`` is false.
        SettingError: a method's settings do not fit this U-Net.
    """
    methods = tuple(Calibrated(m) if isinstance(m, str | PathLike | Profile) else m for m in methods) or (RECOMMENDED,)
    pipe, unet = _split(pipe_or_unet)
    _refuse(pipe, unet, methods)
    previous = _previous(pipe, unet)
    if previous is not None and not replace:
        raise AlreadyAppliedError(
            f"unetaccel is already applied here: {', '.join(map(repr, previous.methods))}. "
            "Call handle.remove() first, or apply(..., replace=True)"
        )
    how = Execution.of(compile, kernels, precompute)
    engine = Engine(faced(unet), methods, how)  # fails before anything is changed or given up
    controlnet = controlnet_engine(faced(getattr(pipe, "controlnet", None)), engine)
    slots = {} if pipe is None else {"unet": face(engine)}
    if controlnet is not None:
        slots["controlnet"] = face(controlnet, AcceleratedControlNet)
    if previous is not None:
        previous.remove()
    replaced = {name: getattr(pipe, name) for name in slots}
    engine.remove = lambda: _remove(pipe, slots, replaced, engine)
    for name, module in slots.items():
        _put(pipe, name, module)
    if pipe is not None:
        watch_calls(pipe)
    return Handle(pipe, slots.get("unet") or face(engine), engine)


READS_DEEP_ATTENTION = (
    "StableDiffusionSAGPipeline",
    "StableDiffusionAttendAndExcitePipeline",
    "LEditsPPPipelineStableDiffusion",
    "LEditsPPPipelineStableDiffusionXL",
)


def _refuse(pipe, unet: nn.Module, methods: tuple[Method, ...]) -> None:
    """Raise for pipelines that could be wrapped but would not work, by name and with the way out."""
    if pipe is None:
        return
    name, names = type(pipe).__name__, {c.__name__ for c in type(pipe).__mro__}
    if names & set(READS_DEEP_ATTENTION):
        raise UnsupportedModelError(
            f"{name} reads the attention maps of deep layers at every step, which cached evaluations do not run. "
            "Run it plain, with fewer steps where time matters"
        )
    inner = [k for k, v in vars(pipe).items() if k != "unet" and v is not pipe and getattr(v, "unet", None) is unet]
    if inner:
        raise UnsupportedModelError(
            f"{name} runs its U-Net inside another pipeline: apply to that one, pipe.{inner[0]}"
        )
    scheduler = getattr(pipe, "scheduler", None)
    if not (hasattr(scheduler, "set_timesteps") and hasattr(scheduler, "step")):
        raise UnsupportedModelError(
            f"{name} has a {type(scheduler).__name__} that lacks set_timesteps or step, so its evaluations cannot be counted. "
            "Apply to pipe.unet and mark your own loop with handle.run(evaluations)"
        )
    if any(isinstance(m, GuidanceReuse) for m in methods) and not hasattr(type(pipe), "do_classifier_free_guidance"):
        raise SettingError(
            f"{name} does not say whether it guides (do_classifier_free_guidance), so GuidanceReuse cannot tell its halves "
            "apart. Leave it out, or apply to pipe.unet and mark your own loop with handle.run(evaluations, guided=True)"
        )
    if hasattr(scheduler, "step_correct"):
        raise UnsupportedModelError(
            f"{name} has a {type(scheduler).__name__} that corrects each step by a second evaluation (step_correct), which is "
            "not counted. Sample with another scheduler (DDIMPipeline takes the same U-Net), or apply to pipe.unet and mark "
            "your own loop with handle.run(evaluations)"
        )


def _previous(pipe, unet: nn.Module) -> Engine | None:
    """What is applied here already.

    A pipeline made by ``from_pipe`` of an accelerated one holds its U-Net but is not accelerated itself.
    """
    if not isinstance(unet, AcceleratedUNet) or unet._unetaccel.removed:
        return None
    return unet._unetaccel if pipe is None or isinstance(pipe, AcceleratedPipeline) else None


def _split(pipe_or_unet) -> tuple[object | None, nn.Module]:
    if isinstance(pipe_or_unet, nn.Module):
        return None, pipe_or_unet
    unet = getattr(pipe_or_unet, "unet", None)
    if isinstance(unet, nn.Module):
        return pipe_or_unet, unet
    name = type(pipe_or_unet).__name__
    transformer = getattr(pipe_or_unet, "transformer", None)
    if transformer is not None:
        raise UnsupportedModelError(
            f"{name} runs on a transformer ({type(transformer).__name__}), not on a U-Net. unetaccel serves U-Nets only; "
            "for transformers see diffusers' enable_cache or cache-dit"
        )
    raise UnsupportedModelError(f"expected a diffusers pipeline with a `unet`, or a U-Net module, got {name}")


def plain_unet(pipe_or_unet) -> nn.Module:
    """The user's U-Net in a pipeline, accelerated or not, or the one given.

    Raises:
        UnsupportedModelError: neither a pipeline with a U-Net nor a module.
    """
    return faced(_split(pipe_or_unet)[1])


def _put(pipe, name: str, module: nn.Module) -> None:
    # Not by plain assignment: pipelines write their config when a component is set.
    object.__setattr__(pipe, name, module)


def _remove(pipe, slots: dict[str, nn.Module], replaced: dict[str, nn.Module], engine: Engine) -> None:
    if engine.removed:
        return
    engine.removed = True
    engine.let_go()
    ours = [name for name, module in slots.items() if getattr(pipe, name) is module]  # the user may have put another
    for name in ours:
        _put(pipe, name, replaced[name])
    left = getattr(pipe, "unet", None)
    if not (isinstance(left, AcceleratedUNet) and not left._unetaccel.removed):
        unwatch_calls(pipe)
