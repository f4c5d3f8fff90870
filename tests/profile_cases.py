"""Profiles of untrained models, made without sampling."""

import numpy as np

from unetaccel.calibrate import planned
from unetaccel.forecast import abscissae
from unetaccel.profile import Call, Profile
from unetaccel.skips import skip_table
from unetaccel.timeline import of_steps
from unetaccel.weights import base_of


def a_profile(pipe, steps: int, full: int, cuts=(0, 2), seed: int = 0) -> Profile:
    """Of ``pipe`` with its scheduler, from the Gram matrices of smooth random walks."""
    timeline = of_steps(pipe.scheduler, steps)
    T, chance = timeline.evaluations, np.random.default_rng(seed)
    walks = {b: 5 + chance.normal(size=(2, T, 16)).cumsum(axis=1).cumsum(axis=1) for b in cuts}
    grams = {b: np.einsum("sid,skd->sik", X, X) for b, X in walks.items()}
    u = tuple(abscissae(timeline, "log1p_sigma"))
    call = Call(type(pipe.scheduler).__name__, {}, steps, None, tuple(timeline.read()[0]), u)
    plans = {b: planned(gram, u, 3) for b, gram in grams.items()}
    return Profile(base_of(pipe.unet, skip_table(pipe.unet)), call, {}, grams, plans, cuts[0], full)
