"""What can be applied to a pipeline as it stands, what stands in the way, and what we would choose."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from .controlnet import why_in_full
from .costs import AUTO_SHARE, CutCost, cut_costs, deepest_cheap, example_inputs
from .errors import UnsupportedModelError
from .methods import RECOMMENDED
from .offload import streamed
from .overlay import has_foreign_forward
from .skips import skip_table
from .timeline import of_steps

TOKENS, MOST_TOKENS = 77, 10_000
"""Of a caption where the tokenizer does not say, and where what it says is no number that one has."""
TOOLS = {
    "DeepCache": "DeepCacheSDHelper",
    "tgate": "T-GATE",
    "tomesd": "tomesd",
    "onediff": "OneDiff",
    "sfast": "stable-fast",
}
"""Root module of a replaced forward, or of a patched class, and the tool that puts it there."""


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis: ``level`` is "ok", "note" or "conflict"."""

    level: str
    text: str


@dataclass(frozen=True)
class Diagnosis:
    """Findings, the cost of each cut, and the recommended setting (None where nothing can be applied)."""

    findings: tuple[Finding, ...]
    costs: tuple[CutCost, ...]
    recommended: str | None
    because: str

    @property
    def applies(self) -> bool:
        """Whether ``apply`` would succeed."""
        return self.recommended is not None

    def as_dict(self) -> dict:
        """Plain data, ready for JSON."""
        return {
            "applies": self.applies,
            "findings": [vars(f) for f in self.findings],
            "cuts": [{"b": c.b, "share": round(c.share, 4), "bytes": c.feature_bytes} for c in self.costs],
            "recommended": self.recommended,
            "because": self.because,
        }


def diagnose(pipe, steps: int = 50) -> Diagnosis:
    """Look at a pipeline without changing or calling it.

    Args:
        pipe: a diffusers pipeline.
        steps: the number of inference steps that it will be called with.
    """
    unet = getattr(pipe, "unet", None)
    if not isinstance(unet, nn.Module):
        kind = type(getattr(pipe, "transformer", None)).__name__ if hasattr(pipe, "transformer") else None
        text = f"{type(pipe).__name__} has no U-Net" + (f"; it runs on {kind}" if kind else "")
        return Diagnosis((Finding("conflict", text),), (), None, text)
    findings = [_supported(unet), *_patches(unet), *_hooks(unet), *_add_ons(pipe, unet)]
    timeline = of_steps(pipe.scheduler, steps)
    if timeline.few_steps:
        findings.append(Finding("note", f"{steps} steps: calls would run plain, because {timeline.few_steps}"))
    conflicts = [f for f in findings if f.level == "conflict"]
    if conflicts:
        return Diagnosis(tuple(findings), (), None, conflicts[0].text)
    costs = _costs(pipe, unet, findings)
    return Diagnosis(tuple(findings), costs, *_recommend(timeline, costs))


def _supported(unet: nn.Module) -> Finding:
    try:
        table = skip_table(unet)
    except UnsupportedModelError as error:
        return Finding("conflict", str(error))
    return Finding("ok", f"{type(unet).__name__} with {len(table)} skips: cuts 0 to {len(table) - 1}")


def _patches(unet: nn.Module) -> list[Finding]:
    found = []
    for name, module in unet.named_modules():
        merged = type(module).__name__.startswith("ToMe") or hasattr(module, "_tome_info")
        if merged:
            found.append(
                Finding("note", f"tomesd is applied (first at {name or 'the U-Net'}); it merges tokens in both views")
            )
            break
    for name, module in unet.named_modules():
        if has_foreign_forward(module) and not (hasattr(module, "_hf_hook") or hasattr(module, "_diffusers_hook")):
            forward = module.__dict__["forward"]
            tool = TOOLS.get((getattr(forward, "__module__", None) or "").split(".")[0], "another tool")
            found.append(
                Finding("conflict", f"{tool} has replaced `forward` of {name or 'the U-Net'}: disable it first")
            )
            break
    return found


def _hooks(unet: nn.Module) -> list[Finding]:
    if streamed(unet) is not None:
        return [Finding("conflict", "group offloading prefetches weights: use it with use_stream=False")]
    hooked = [m for m in unet.modules() if hasattr(m, "_hf_hook") or hasattr(m, "_diffusers_hook")]
    if len(hooked) > 1:
        modes = "but not with compile=True, and eager with compile='graphs'"
        return [Finding("note", f"{len(hooked)} modules have offload or casting hooks: works, {modes}")]
    return [Finding("ok", "model offload is on: works before and after apply")] if hooked else []


def _add_ons(pipe, unet: nn.Module) -> list[Finding]:
    found = []
    if getattr(unet, "peft_config", None):
        found.append(Finding("ok", f"adapters {', '.join(unet.peft_config)}: shared by both views"))
    if any(getattr(block, "b1", None) for block in getattr(unet, "up_blocks", [])):
        found.append(Finding("ok", "FreeU is on: composes with every cut"))
    if (
        getattr(unet, "encoder_hid_proj", None) is not None
        and unet.config.get("encoder_hid_dim_type") == "ip_image_proj"
    ):
        found.append(Finding("ok", "IP-Adapter: shared by both views"))
    controlnet = getattr(pipe, "controlnet", None)
    if isinstance(controlnet, nn.Module):
        why = why_in_full(controlnet)
        text = (
            f"{type(controlnet).__name__} runs in full on cached steps: {why}"
            if why
            else "ControlNet runs only as far as needed"
        )
        found.append(Finding("note" if why else "ok", text))
    return found


def _costs(pipe, unet: nn.Module, findings: list[Finding]) -> tuple[CutCost, ...]:
    tokens = getattr(getattr(pipe, "tokenizer", None), "model_max_length", TOKENS)
    try:
        return tuple(cut_costs(unet, example_inputs(unet, tokens=tokens if tokens < MOST_TOKENS else TOKENS)))
    except UnsupportedModelError as error:
        findings.append(Finding("note", str(error)))
        return ()


def _recommend(timeline, costs: tuple[CutCost, ...]) -> tuple[str | None, str]:
    if timeline.few_steps:
        return "plain", "too few steps to reuse anything"
    cut, T = deepest_cheap(costs), timeline.evaluations
    method = replace(RECOMMENDED, cut=cut)
    full = sum(method.flags(timeline))
    pace = f"{full} of {T} evaluations full, most of them early, where F moves fastest"
    if not costs:
        return repr(method), pace
    share = costs[cut].share
    reason = "the deepest cut that costs at most a tenth" if share <= AUTO_SHARE else "every deeper cut costs far more"
    ceiling = T / (full + (T - full) * share)
    return (
        repr(method),
        f"{pace}; cut {cut}: {reason} ({share:.1%} there); the U-Net's MACs allow {ceiling:.2f}x; "
        "`unetaccel tune` finds better plans for this model",
    )
