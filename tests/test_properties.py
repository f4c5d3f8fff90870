"""Any architecture, cut, schedule, batch and sequence of calls: equal to a literal, slow DeepCache."""

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import unetaccel
from unetaccel import DeepCache
from unetaccel.skips import skip_table

CUTS = {"sd": 9, "one-layer": 6, "three-layers": 12, "sdxl": 9, "ddpm": 9, "class-conditioned": 6}


def literal(unet, cut: int, full: list[bool], inputs: list[dict]) -> list[torch.Tensor]:
    """Runs everything every time, and overwrites F where it enters the decoder by the one kept at the last full step."""
    skip, kept = skip_table(unet)[cut], {}
    resnet = unet.get_submodule(skip.entry)

    def enter(module, args):
        hidden = args[0][:, : skip.hidden]
        if kept["full"]:
            kept["F"] = hidden.clone()
        return (torch.cat([kept["F"], args[0][:, skip.hidden :]], dim=1), *args[1:])

    hook, outputs = resnet.register_forward_pre_hook(enter), []
    try:
        for is_full, step in zip(full, inputs, strict=True):
            kept["full"] = is_full
            outputs.append(unet(**step)[0])
    finally:
        hook.remove()
    return outputs


@st.composite
def jobs(draw):
    name = draw(st.sampled_from(sorted(CUTS)))
    calls = st.tuples(st.integers(5, 9), st.integers(1, 3), st.sampled_from([(16, 16), (8, 24)]), st.integers(0, 5))
    schedule = st.lists(st.integers(1, 4), max_size=4, unique=True) | st.integers(1, 5)
    return name, draw(st.integers(0, CUTS[name] - 1)), draw(schedule), draw(st.lists(calls, min_size=1, max_size=3))


@given(job=jobs())
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_equal_to_a_literal_reference(tiny, job):
    name, cut, schedule, calls = job
    unet = tiny.unet(name)
    method = (
        DeepCache(interval=schedule, cut=cut) if isinstance(schedule, int) else DeepCache(schedule=schedule, cut=cut)
    )
    with torch.no_grad(), unetaccel.apply(unet, method) as handle:
        for evaluations, batch, size, seed in calls:
            inputs = [
                {**tiny.inputs(unet, batch, size, seed), "timestep": torch.tensor(990 - 100 * i)}
                for i in range(evaluations)
            ]
            with handle.run(evaluations):
                ours = [handle.unet(**step)[0] for step in inputs]
            expected = literal(unet, cut, list(handle.plan(evaluations)), inputs)
            assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))
