"""Two-graph execution, with a recorder that does on a CPU what a CUDA graph does.

What a real recorder adds (streams, the pool) needs a GPU: ``unetaccel bench latency`` checks its latents there before it times any.
"""

import threading
import warnings

import pytest
import torch
from graph_cases import Taped, count

import unetaccel
from unetaccel import DeepCache, GuidanceReuse, SettingError, SkipTuning, graphs, ops
from unetaccel.snapshot import Snapshot


@pytest.fixture
def recorders(monkeypatch):
    made = []

    def recorder():
        made.append(Taped())
        return made[-1]

    monkeypatch.setattr(graphs, "CudaGraphs", recorder)
    return made


def both(pipe, tiny, calls, *methods, **options) -> tuple[list, list]:
    """Latents of these calls, eager and recorded."""
    found = []
    for compile in (False, "graphs"):
        with unetaccel.apply(pipe, *methods, compile=compile, **options):
            found.append([tiny.call(pipe, **call) for call in calls])
    return tuple(found)


def assert_equal(a: list, b: list) -> None:
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x, y)


def test_two_graphs_for_any_number_of_steps_seeds_and_prompts(tiny, recorders):
    pipe = tiny.pipe()
    calls = [dict(steps=s, seed=seed) for s, seed in ((10, 0), (7, 1), (20, 2))]
    assert_equal(*both(pipe, tiny, calls, DeepCache(interval=3, cut=4)))
    assert count(recorders) == 2


@pytest.mark.parametrize("forecast", ["linear", "hold"])
@pytest.mark.parametrize("scheduler", ["HeunDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_schedulers_and_forecasts(tiny, recorders, scheduler, forecast):
    pipe = tiny.pipe(scheduler=tiny.scheduler(scheduler))
    assert_equal(*both(pipe, tiny, [{}, {"seed": 1}], DeepCache(interval=3, forecast=forecast)))
    assert count(recorders) == 2


@pytest.mark.skipif(ops._missing() is not None, reason=f"optional: {ops._missing()}")
def test_one_graph_blends_at_every_cached_evaluation(tiny, recorders):
    """By a kernel that reads its row of weights from the device."""
    pipe = tiny.pipe()
    methods = DeepCache(interval=2, schedule="growing", forecast={"newton": {"order": 2}})
    assert_equal(*both(pipe, tiny, [{"steps": 12}, {"steps": 9}], methods, kernels="triton"))
    assert count(recorders) == 2


def test_another_shape_is_two_more_graphs(tiny, recorders):
    pipe = tiny.pipe()
    assert_equal(*both(pipe, tiny, [{}, {"size": 64}, {}, {"size": 64}], DeepCache(interval=3)))
    assert count(recorders) == 4


@pytest.mark.parametrize("name", ["sd", "sdxl", "ddpm", "animatediff", "svd"])
def test_every_kind_of_unet(tiny, recorders, name):
    unet = tiny.unet(name)
    inputs, found = tiny.inputs(unet), []
    for compile in (False, "graphs"):
        handle = unetaccel.apply(unet, DeepCache(interval=3, cut=1), compile=compile)
        with torch.no_grad(), handle.run(6):
            found.append([handle.unet(**{**inputs, "timestep": torch.tensor(900 - 100 * i)})[0] for i in range(6)])
    assert_equal(*found)
    assert count(recorders) == 2


def test_two_streams_keep_their_features_apart(tiny, recorders):
    unet = tiny.unet()
    a, b = tiny.inputs(unet), tiny.inputs(unet)
    b["encoder_hidden_states"] = b["encoder_hidden_states"] + 1
    found = []
    for compile in (False, "graphs"):
        handle = unetaccel.apply(unet, DeepCache(interval=2, force=True), compile=compile)
        with torch.no_grad(), handle.run(4, streams=2):
            found.append([handle.unet(**x)[0] for _ in range(4) for x in (a, b)])
    assert_equal(*found)
    assert not torch.equal(found[0][0], found[0][1])
    assert count(recorders) == 2


def test_skip_edits_with_a_schedule_and_halves(tiny, recorders):
    pipe = tiny.pipe()
    methods = DeepCache(interval=2, force=True), SkipTuning(0.7, schedule="increasing"), GuidanceReuse(0.5)
    assert_equal(*both(pipe, tiny, [{}, {"seed": 1}], *methods))
    assert count(recorders) == 4, "whole batches and halves"


def test_plain_calls_are_recorded_too(tiny, recorders):
    pipe = tiny.pipe()
    assert_equal(*both(pipe, tiny, [{}], DeepCache(interval=1)))
    assert count(recorders) == 1


def test_an_input_that_is_written_to_between_steps_is_seen(tiny, recorders):
    """What pipelines do that keep one tensor of latents, or change the prompt in place."""
    unet = tiny.unet()
    inputs, found = tiny.inputs(unet), []
    for compile in (False, "graphs"):
        given = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
        handle = unetaccel.apply(unet, DeepCache(interval=3), compile=compile)
        with torch.no_grad(), handle.run(6):
            found.append([])
            for _ in range(6):
                found[-1].append(handle.unet(**given)[0])
                given["sample"].mul_(0.9)
                given["encoder_hidden_states"].add_(0.1)
    assert_equal(*found)


def test_outputs_survive_the_next_replay(tiny, recorders):
    unet = tiny.unet()
    inputs = tiny.inputs(unet)
    handle = unetaccel.apply(unet, DeepCache(interval=3), compile="graphs")
    with torch.no_grad(), handle.run(6):
        first = handle.unet(**inputs)[0]
        kept = first.clone()
        for i in range(5):
            handle.unet(**{**inputs, "sample": inputs["sample"] * i})
    assert torch.equal(first, kept)


@pytest.mark.parametrize(
    "change",
    [
        lambda unet: unet.conv_in.weight.data.mul_(1.5),
        lambda unet: setattr(unet.conv_in.weight, "data", unet.conv_in.weight.data * 1.5),
        lambda unet: setattr(unet.conv_out, "bias", torch.nn.Parameter(unet.conv_out.bias + 1)),
        lambda unet: setattr(unet.mid_block.resnets[0], "output_scale_factor", 2.0),
        lambda unet: (
            unet.mid_block.attentions.__setitem__(0, unet.down_blocks[-1].attentions[0])
            if len(unet.down_blocks[-1].resnets) and hasattr(unet.down_blocks[-1], "attentions")
            else unet.mid_block.resnets[0].__setattr__("output_scale_factor", 3.0)
        ),
        lambda unet: unet.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4),
    ],
    ids=["in place", "another address", "another parameter", "a number", "a layer below", "freeu"],
)
def test_changes_of_the_model_between_calls_are_followed(tiny, recorders, change):
    pipe = tiny.pipe()
    with unetaccel.apply(pipe, DeepCache(interval=3), compile="graphs") as handle:
        before = tiny.call(pipe)
        change(handle._engine.original)
        after = tiny.call(pipe)
    with unetaccel.apply(pipe, DeepCache(interval=3)):
        assert torch.equal(after, tiny.call(pipe))
    assert not torch.equal(before, after)


def test_hooks_gradients_and_autocast_are_eager_with_a_reason(tiny, recorders):
    unet = tiny.unet()
    inputs = tiny.inputs(unet)
    handle = unetaccel.apply(unet, DeepCache(interval=2, force=True), compile="graphs")
    seen = []
    hook = unet.up_blocks[-1].resnets[-1].register_forward_hook(lambda *_: seen.append(1))
    with warnings.catch_warnings(record=True) as told, torch.no_grad(), handle.run(4):
        warnings.simplefilter("always")
        for _ in range(4):
            handle.unet(**inputs)
    hook.remove()
    assert len(seen) == 4
    assert [str(w.message) for w in told if "runs eager" in str(w.message)] == [
        f"unetaccel: compile='graphs' runs eager here: {reason}" for reason in handle._engine.log.eager
    ]
    assert (
        "2 calls eager so far: 1 layers have hooks (first: view.up_blocks.0.block.resnets.0), which"
        in handle.summary().graphs
    )
    with pytest.warns(UserWarning, match="gradients are asked for"), handle.run(1):
        handle.unet(**inputs)
    with (
        pytest.warns(UserWarning, match="autocast is on"),
        torch.no_grad(),
        torch.autocast("cpu", torch.bfloat16),
        handle.run(1),
    ):
        handle.unet(**inputs)
    assert count(recorders) == 0
    with torch.no_grad(), handle.run(2):
        handle.unet(**inputs), handle.unet(**inputs)
    assert count(recorders) == 2, "without hooks it is recorded"


def test_on_a_cpu_it_falls_back_with_a_reason(tiny):
    pipe = tiny.pipe()
    with unetaccel.apply(pipe, DeepCache(interval=3)):
        eager = tiny.call(pipe)
    with unetaccel.apply(pipe, DeepCache(interval=3), compile="graphs") as handle:
        with pytest.warns(UserWarning, match="compile='graphs' runs eager here: CUDA graphs need a CUDA device"):
            assert torch.equal(tiny.call(pipe), eager)
        assert "CUDA graphs need a CUDA device, and this call is on cpu" in str(handle.summary())


def test_what_cannot_be_recorded_is_tried_once(tiny, recorders, monkeypatch):
    tries = []

    def record(self, work, buffers):
        tries.append(1)
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(Taped, "record", record)
    pipe = tiny.pipe()
    with unetaccel.apply(pipe, DeepCache(interval=3)):
        eager = tiny.call(pipe)
    with unetaccel.apply(pipe, DeepCache(interval=3), compile="graphs") as handle:
        with pytest.warns(UserWarning, match="recording failed"):
            assert torch.equal(tiny.call(pipe), eager)
        assert len(tries) == 2
        assert "recording failed (operation not permitted when stream is capturing)" in handle.summary().graphs


def test_memory_is_reported_and_given_back(tiny, recorders):
    unet = tiny.unet()
    inputs = tiny.inputs(unet)
    handle = unetaccel.apply(unet, DeepCache(interval=2, force=True), compile="graphs")
    with torch.no_grad():
        for size in range(8, 8 + 4 * (graphs.MOST + 3), 4):
            x = torch.randn(*inputs["sample"].shape[:2], size, 8)
            with handle.run(2):
                handle.unet(**{**inputs, "sample": x}), handle.unet(**{**inputs, "sample": x})
    log = handle._engine.log
    [views] = handle._engine._idle
    steps = views.full_step, views.cached_step
    assert all(len(step._recordings) == graphs.MOST for step in steps)
    assert log.nbytes == sum(r.nbytes for step in steps for _, r in step._recordings) > 0
    assert f"{log.nbytes:,} bytes" in handle.summary().graphs
    unet.conv_in.weight.data = unet.conv_in.weight.data.clone()
    with torch.no_grad(), handle.run(2):
        handle.unet(**inputs)
    assert len(views.full_step._recordings) == 1


def test_threads_have_graphs_of_their_own(tiny, recorders):
    unet = tiny.unet()
    handle = unetaccel.apply(unet, DeepCache(interval=2, force=True), compile="graphs")
    plain = unetaccel.apply(unet, DeepCache(interval=2, force=True))
    given = [{**tiny.inputs(unet), "sample": torch.randn_like(tiny.inputs(unet)["sample"])} for _ in range(2)]
    found: dict = {}

    def loop(i: int, gate: threading.Barrier) -> None:
        with torch.no_grad(), handle.run(4):
            for step in range(4):
                gate.wait()
                with lock if step < 2 else open_door:
                    found[i] = handle.unet(**given[i])[0]

    lock, open_door, gate = threading.Lock(), threading.Semaphore(2), threading.Barrier(2)
    threads = [threading.Thread(target=loop, args=(i, gate)) for i in range(2)]
    [t.start() for t in threads], [t.join() for t in threads]
    for i in range(2):
        with torch.no_grad(), plain.run(4):
            for _ in range(4):
                expected = plain.unet(**given[i])[0]
        assert torch.equal(found[i], expected)
    assert len(recorders) == 2


def test_inference_mode_and_its_end(tiny, recorders):
    unet = tiny.unet()
    inputs = tiny.inputs(unet)
    handle, plain = (unetaccel.apply(unet, DeepCache(interval=2, force=True), compile=c) for c in ("graphs", False))
    for mode in (torch.inference_mode, torch.no_grad, torch.inference_mode):
        with mode():
            x = inputs["sample"] * 1.5
            with handle.run(4), plain.run(4):
                for _ in range(4):
                    assert torch.equal(
                        handle.unet(**{**inputs, "sample": x})[0], plain.unet(**{**inputs, "sample": x})[0]
                    )
    assert count(recorders) == 2


def test_settings(tiny):
    with pytest.raises(SettingError, match=r"apply\(compile\)='cudagraphs': expected 'graphs', 'inductor'"):
        unetaccel.apply(tiny.unet(), DeepCache(), compile="cudagraphs")


def test_changes_that_leave_memory_where_it_is_are_followed(tiny, recorders):
    """What a model that was on another device may come back with: the same addresses, and weights in another order."""
    unet = tiny.unet()
    inputs, weight = tiny.inputs(unet), unet.conv_out.weight
    handle, plain = (unetaccel.apply(unet, DeepCache(interval=2, force=True), compile=c) for c in ("graphs", False))
    with torch.no_grad():
        for _ in range(2):
            with handle.run(2), plain.run(2):
                for _ in range(2):
                    assert torch.equal(handle.unet(**inputs)[0], plain.unet(**inputs)[0])
            weight.data = weight.data.transpose(2, 3)


def test_an_input_that_is_written_to_without_a_mark_is_seen(tiny, recorders):
    """As a ControlNet's residuals are that is itself replayed (torch.compile's mode "reduce-overhead")."""
    unet = tiny.unet()
    inputs, found = tiny.inputs(unet), []
    for compile in (False, "graphs"):
        given = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
        handle = unetaccel.apply(unet, DeepCache(interval=3), compile=compile)
        found.append([])
        with torch.no_grad():
            for _ in range(2):
                with handle.run(6):
                    for _ in range(6):
                        found[-1].append(handle.unet(**given)[0])
                        given["sample"].data.mul_(0.9)
                given["encoder_hidden_states"].data.add_(0.1)  # between calls only
    assert_equal(*found)


def test_recordings_of_every_shape_follow_what_changed(tiny, recorders):
    """Keys and values are remembered by each recording."""
    unet = tiny.unet()
    short = tiny.inputs(unet)
    long = {**short, "encoder_hidden_states": short["encoder_hidden_states"].repeat(1, 2, 1)}
    handle, plain = (
        unetaccel.apply(unet, DeepCache(interval=2, force=True), **options)
        for options in (dict(compile="graphs", precompute=True), dict(precompute=True))
    )
    attention = next(m for m in unet.modules() if getattr(m, "is_cross_attention", False))
    with torch.no_grad():
        for _ in range(2):
            with handle.run(2, streams=2), plain.run(2, streams=2):
                for _ in range(2):
                    for inputs in (short, long):
                        assert torch.equal(handle.unet(**inputs)[0], plain.unet(**inputs)[0])
            attention.to_v.weight.data.mul_(2)
    assert count(recorders) == 4


class Wrapped(torch.Tensor):
    """A parameter as quantising libraries make them: made of tensors, with no memory of its own."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device)

    def __init__(self, inner):
        self.inner = inner

    def __tensor_flatten__(self):
        return ["inner"], None

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        def plain(x):
            return x.inner if isinstance(x, cls) else x

        found = func(*map(plain, args), **{k: plain(v) for k, v in (kwargs or {}).items()})
        return cls(found) if func is torch.ops.aten.detach.default else found


def test_what_is_in_lists_of_lists_is_part_of_a_snapshot():
    layer = torch.nn.Linear(4, 4)
    layer.scale = [[0.5, 1.0]]  # of an IP-Adapter for each of several masks
    snapshot = Snapshot(layer)
    layer.scale[0][1] = 0.7
    assert not snapshot.is_current()


def test_weights_without_memory_of_their_own():
    layer = torch.nn.Linear(4, 4)
    layer.weight = torch.nn.Parameter(Wrapped(layer.weight.data.clone()), requires_grad=False)
    snapshot = Snapshot(layer)
    assert snapshot.is_current()
    kept, layer.weight.inner = layer.weight.inner, layer.weight.inner * 1.5
    assert not snapshot.is_current()
    layer.weight.inner = kept
    assert snapshot.is_current()
