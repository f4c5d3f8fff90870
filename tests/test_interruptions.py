"""Rule 3 where calls do not end well: exceptions, consumers that stop half-way, several threads."""

import contextlib
import gc
import queue
import threading
import weakref

import pytest
import torch

import unetaccel
from unetaccel import DeepCache


def stored(handle):
    """Features alive in the handle's latest run."""
    return [f for s in handle._engine.last._streams for f in s.ring.values()]


def kinds(handle):
    return handle._engine.report().kinds


@pytest.mark.parametrize("place", ["unet", "scheduler", "callback"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("evaluation", [4, 5])  # a full and a cached one
def test_an_exception_leaves_nothing_behind(tiny, place, error, evaluation):
    pipe = tiny.pipe()
    handle = unetaccel.apply(pipe, DeepCache(cut=1))
    expected = tiny.call(pipe)
    count, options, undo, features = [0], {}, lambda: None, []

    def fail(*args, **kwargs):
        count[0] += 1
        if count[0] == evaluation:
            in_flight = handle._engine.last.views.port.feature is not None
            assert stored(handle) or in_flight, "a feature is held when it fails, so freeing it is a test"
            features.extend(map(weakref.ref, stored(handle)))
            raise error("stop")

    if place == "unet":
        hook = pipe.unet.conv_out.register_forward_hook(lambda *a: fail())
        undo = hook.remove
    elif place == "scheduler":
        step = pipe.scheduler._get_variance
        pipe.scheduler._get_variance = lambda *a: (fail(), step(*a))[1]
        undo = lambda: pipe.scheduler.__dict__.pop("_get_variance")  # noqa: E731
        options = {"eta": 0.5}
    else:
        options = {"callback_on_step_end": lambda p, i, t, values: fail() or values}
    scheduler = pipe.scheduler
    with pytest.raises(error, match="stop"):
        tiny.call(pipe, **options)
    undo()
    gc.collect()
    assert not stored(handle)
    assert all(f() is None for f in features)
    assert all(v.port.feature is None for v in handle._engine._idle)
    assert pipe.scheduler is scheduler
    assert torch.equal(tiny.call(pipe), expected)


def test_features_are_freed_when_the_call_ends(tiny):
    pipe = tiny.pipe()
    handle = unetaccel.apply(pipe, DeepCache(cut=1))
    tiny.call(pipe)
    assert not stored(handle)
    assert not feature_tensors(handle)
    assert all(v.port.feature is None for v in handle._engine._idle)
    with handle.run(6):
        handle.unet(**tiny.inputs(pipe.unet))
        assert len(feature_tensors(handle)) == 1, "the search finds a feature while there is one"


def feature_tensors(handle) -> list:
    """Every tensor of F's shape that the garbage collector can reach and that is no parameter."""
    gc.collect()
    shape, own = (2, 16, 16, 16), {id(p) for p in handle._engine.original.parameters()}
    return [o for o in gc.get_objects() if type(o) is torch.Tensor and o.shape == shape and id(o) not in own]


def test_an_abandoned_generator_ends_its_run(tiny):
    unet = tiny.unet()
    handle = unetaccel.apply(unet, DeepCache(interval=3))
    inputs = tiny.inputs(unet)

    def samples():
        with handle.run(9):
            for _ in range(9):
                yield handle.unet(**inputs)[0]

    generator = samples()
    next(generator), next(generator)
    assert stored(handle)
    closer = threading.Thread(target=generator.close)  # another thread, so another context
    closer.start()
    closer.join()
    assert not stored(handle)
    with handle.run(6):
        outputs = [handle.unet(**inputs)[0] for _ in range(3)]
    assert kinds(handle) == [[True, False, False]]
    assert torch.equal(outputs[0], unet(**inputs)[0])


@pytest.mark.parametrize("evaluations", [1, 2])  # left after a full and after a cached one
def test_a_forgotten_generator_frees_its_features(tiny, evaluations):
    unet = tiny.unet()
    handle = unetaccel.apply(unet, DeepCache(interval=3))
    inputs = tiny.inputs(unet)

    def samples():
        with handle.run(9):
            for _ in range(9):
                yield handle.unet(**inputs)[0]

    generator = samples()
    [next(generator) for _ in range(evaluations)]
    feature = weakref.ref(stored(handle)[0])
    assert feature() is not None
    del generator
    gc.collect()
    assert feature() is None
    with handle.run(6):
        assert torch.equal(handle.unet(**inputs)[0], unet(**inputs)[0])


def yielding(pipe):
    """Turn ``pipe`` into a user's pipeline that yields its latents as it goes, and returns the last."""

    class Yielding(type(pipe)):
        @torch.no_grad()
        def __call__(self, steps: int):
            self.scheduler.set_timesteps(steps)
            x = torch.ones(1, 4, 16, 16)
            for t in self.scheduler.timesteps:
                x = self.scheduler.step(self.unet(x, t, torch.zeros(1, 7, 32))[0], t, x).prev_sample
                yield x
            return x

    pipe.__class__ = Yielding
    return pipe


def test_a_pipeline_that_yields_is_one_run_however_far_it_is_read(tiny):
    pipe = yielding(tiny.pipe())
    plain, scheduler = list(pipe(6)), pipe.scheduler
    handle = unetaccel.apply(pipe, DeepCache(interval=3))
    expected = list(pipe(6))
    assert handle.summary().pattern == "F..F.."
    assert not torch.equal(expected[-1], plain[-1])
    abandoned = pipe(6)
    next(abandoned), next(abandoned)
    feature = weakref.ref(stored(handle)[0])
    abandoned.close()
    gc.collect()
    assert feature() is None
    assert pipe.scheduler is scheduler
    assert all(map(torch.equal, pipe(6), expected))
    handle.remove()
    assert all(map(torch.equal, pipe(6), plain))


def test_a_consumer_that_stops_half_way(tiny):
    """A generator around a pipeline call in a thread of its own, which the consumer leaves."""
    pipe = tiny.pipe()
    handle = unetaccel.apply(pipe, DeepCache(cut=1))
    expected = tiny.call(pipe)
    features = []

    def latents():
        ready, wanted, left = queue.Queue(), threading.Semaphore(0), threading.Event()

        def callback(pipe, i, t, values):
            ready.put(values["latents"])
            wanted.acquire()
            if left.is_set():
                raise GeneratorExit
            return values

        def work():
            with contextlib.suppress(GeneratorExit):
                tiny.call(pipe, callback_on_step_end=callback)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            while True:
                yield ready.get(timeout=60)
                wanted.release()
        finally:
            left.set()
            wanted.release()
            thread.join()

    for i, _ in enumerate(latents()):
        features += [weakref.ref(f) for f in stored(handle)]
        if i == 4:
            break
    gc.collect()
    assert features
    assert all(f() is None for f in features)
    assert torch.equal(tiny.call(pipe), expected)


def test_two_threads_with_two_pipelines_on_one_unet(tiny):
    first = tiny.pipe()
    second = tiny.pipe()
    second.unet = first.unet
    expected = []
    for pipe, settings in ((first, DeepCache(interval=2, cut=1)), (second, DeepCache(interval=5, cut=4))):
        with unetaccel.apply(pipe, settings):
            expected.append(tiny.call(pipe, seed=3))
    handles = [
        unetaccel.apply(first, DeepCache(interval=2, cut=1)),
        unetaccel.apply(second, DeepCache(interval=5, cut=4)),
    ]
    results, barrier = [[], []], threading.Barrier(2)

    def work(i, pipe):
        barrier.wait()
        for _ in range(4):
            results[i].append(tiny.call(pipe, seed=3))

    threads = [threading.Thread(target=work, args=(i, p)) for i, p in enumerate((first, second))]
    [t.start() for t in threads]
    [t.join() for t in threads]
    for found, want in zip(results, expected, strict=True):
        assert len(found) == 4
        assert all(torch.equal(image, want) for image in found)
    [h.remove() for h in handles]


def test_two_threads_with_runs_of_one_handle(tiny):
    unet = tiny.unet()
    handle = unetaccel.apply(unet, DeepCache(interval=3, cut=1))
    results = {}

    def work(seed):
        inputs = tiny.inputs(unet, seed=seed)
        with handle.run(9):
            results[seed] = [handle.unet(**{**inputs, "timestep": t})[0] for t in range(900, 0, -100)]

    threads = [threading.Thread(target=work, args=(s,)) for s in (1, 2)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    for seed in (1, 2):
        found = results[seed]
        work(seed)
        assert all(torch.equal(a, b) for a, b in zip(found, results[seed], strict=True))
