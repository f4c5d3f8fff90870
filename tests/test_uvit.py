"""Skip methods on UniDiffuser's transformer: in order of depth, folded exactly, and refused where they mean nothing."""

import warnings
from contextlib import contextmanager

import diffusers
import pytest
import torch
from diffusers import UniDiffuserModel, UniDiffuserPipeline, UniDiffuserTextDecoder
from torch import nn
from torch._dynamo.testing import CompileCounter
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

import unetaccel
from unetaccel import DeepCache, FreeU, ScaleLong, SettingError, SkipTuning, UnsupportedModelError
from unetaccel.layouts import layout_of

pytestmark = pytest.mark.filterwarnings("ignore:.*:FutureWarning", "ignore:.*deprecated:UserWarning")
SKIPS, WIDTH = 3, 16


def build_model(seed: int = 0) -> UniDiffuserModel:
    torch.manual_seed(seed)
    model = UniDiffuserModel(
        text_dim=32,
        clip_img_dim=32,
        num_text_tokens=7,
        num_attention_heads=2,
        attention_head_dim=WIDTH // 2,
        in_channels=4,
        out_channels=4,
        num_layers=2 * SKIPS,
        sample_size=16,
        patch_size=2,
        activation_fn="gelu",
        num_embeds_ada_norm=1000,
        norm_type="layer_norm",
        block_type="unidiffuser",
        use_timestep_embedding=False,
        use_data_type_embedding=True,
        ff_final_dropout=True,
    )
    return model.eval().requires_grad_(False)


def build_pipe() -> UniDiffuserPipeline:
    model, width = build_model(), dict(hidden_size=32, intermediate_size=37, num_hidden_layers=1, num_attention_heads=4)
    text = CLIPTextModel(
        CLIPTextConfig(**width, vocab_size=100, max_position_embeddings=7, bos_token_id=0, eos_token_id=1)
    )
    image = CLIPVisionModelWithProjection(CLIPVisionConfig(**width, image_size=32, patch_size=4, projection_dim=32))
    decoder = UniDiffuserTextDecoder(7, 32, 32, vocab_size=100, n_positions=32, n_embd=32, n_layer=1, n_head=2)
    pipe = UniDiffuserPipeline(
        vae=diffusers.AutoencoderKL(latent_channels=4, norm_num_groups=8, block_out_channels=(8,)).eval(),
        text_encoder=text.eval(),
        image_encoder=image.eval(),
        clip_image_processor=None,
        clip_tokenizer=None,
        text_decoder=decoder.eval(),
        text_tokenizer=None,
        unet=model,
        scheduler=diffusers.DPMSolverMultistepScheduler(solver_order=3),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def inputs(seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    shapes = dict(latent_image_embeds=(2, 4, 16, 16), image_embeds=(2, 1, 32), prompt_embeds=(2, 7, 32))
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {**tensors, "timestep_img": torch.tensor(500), "timestep_text": torch.tensor(0), "data_type": 1}


def distance(a, b) -> float:
    return max(float((x - y).norm() / y.norm()) for x, y in zip(a, b, strict=True))


@contextmanager
def scaled_by_hand(model, rhos):
    """The factor of skip b is that of the output block that takes what input block b gave, found by running the model."""
    made, hooks = {}, []

    def note(b):
        return lambda _, args, kwargs, output: made.update({output.data_ptr(): b})

    def scale(_, args):
        return args[0], args[1] * rhos[made[args[1].data_ptr()]]

    for b, block in enumerate(model.transformer.transformer_in_blocks):
        hooks.append(block.register_forward_hook(note(b), with_kwargs=True))
    hooks += [b["skip"].register_forward_pre_hook(scale) for b in model.transformer.transformer_out_blocks]
    yield
    for hook in hooks:
        hook.remove()


@torch.no_grad()
def test_it_equals_scaling_by_hand_and_the_fold_is_exact():
    model, method = build_model(), SkipTuning(0.4, 0.9)
    plain = model(**inputs())
    with unetaccel.apply(model, method) as handle:
        ours = handle.unet(**inputs())
        assert all(map(torch.equal, handle.unet(*inputs().values()), ours))
    with scaled_by_hand(model, method.rhos(SKIPS)):
        by_hand = model(**inputs())
    assert all(map(torch.equal, ours, by_hand))
    assert distance(ours, plain) > 1e-2
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # there is nothing that the fold would lose
        with unetaccel.apply(model, SkipTuning(0.4, 0.9, backend="fold")) as handle:
            folded = handle.unet(**inputs())
            assert len(handle._engine._idle[0].sites._folds) == SKIPS
    assert distance(folded, ours) < 1e-6
    assert unetaccel.fold_errors(model, method) == {}
    assert all(map(torch.equal, model(**inputs()), plain))


@torch.no_grad()
def test_what_cannot_be_folded_is_scaled_at_its_input():
    model = build_model()
    with unetaccel.apply(model, SkipTuning(0.4)) as handle:
        expected = handle.unet(**inputs())
    for block in model.transformer.transformer_out_blocks:
        block["skip"].skip_linear.register_forward_hook(lambda *_: None)  # a hooked layer is not copied
    for settings in ({"backend": "fold"}, {"where": "shortcut"}):
        with unetaccel.apply(model, SkipTuning(0.4, **settings)) as handle:
            assert distance(handle.unet(**inputs()), expected) < 1e-6


@torch.no_grad()
@pytest.mark.parametrize("gate", ["channel", "token"])
def test_gates_per_feature_and_per_token(gate):
    """The paper's own network: one factor per token, from the mean of its features."""
    model = build_model()
    plain = model(**inputs())
    with unetaccel.apply(model, ScaleLong("ls", gate=gate)) as handle:
        assert all(map(torch.equal, handle.unet(**inputs()), plain))
        gates, seen = handle.learned["scalelong"], {}
        for p in gates.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.3)
        assert distance(handle.unet(**inputs()), plain) > 1e-3

        def keep(layer, args):
            seen["in"] = args

        hook = model.transformer.transformer_out_blocks[0]["skip"].register_forward_pre_hook(keep)
        handle.unet(**inputs())
        (_, scaled), block = seen["in"], model.transformer.transformer_in_blocks[SKIPS - 1]
        hook.remove()
        hook = block.register_forward_hook(lambda _, args, output: seen.update(out=output.clone()))
        handle.unet(**inputs())
        hook.remove()
    pooled = seen["out"].mean(2 if gate == "token" else 1)
    factor = 2 * torch.sigmoid(gates[str(SKIPS - 1)].network(pooled)).unsqueeze(2 if gate == "token" else 1)
    assert torch.allclose(scaled, seen["out"] * factor, rtol=1e-4, atol=1e-5)


def test_depth_is_in_order():
    places = layout_of(build_model()).places(build_model())
    assert [p.order for p in places] == [2, 1, 0]
    assert [p.skip.entry for p in places] == [f"transformer.transformer_out_blocks.{i}.skip" for i in (2, 1, 0)]
    assert [p.skip.source for p in places] == [f"transformer.transformer_in_blocks.{i}" for i in (0, 1, 2)]
    assert all((p.skip.channels, p.skip.hidden) == (WIDTH, WIDTH) for p in places)


@torch.no_grad()
def test_schedules_neutral_and_one_graph():
    torch._dynamo.reset()
    model, counter = build_model(), CompileCounter()
    plain, method = model(**inputs()), SkipTuning(0.4, schedule="increasing")
    with unetaccel.apply(model, SkipTuning(1.0)) as handle:
        assert all(map(torch.equal, handle.unet(**inputs()), plain))
    times, outputs = [999, 500, 0], []
    for options in (False, {"backend": counter}):
        with unetaccel.apply(model, method, compile=options) as handle, handle.run(3, timesteps=times):
            outputs.append([handle.unet(**{**inputs(), "timestep_img": torch.tensor(t)}) for t in times])
    assert counter.frame_count == 1
    assert all(distance(a, b) < 1e-5 for a, b in zip(*outputs, strict=True))
    assert all(map(torch.equal, outputs[0][0], model(**{**inputs(), "timestep_img": torch.tensor(999)})))
    assert distance(outputs[0][2], model(**{**inputs(), "timestep_img": torch.tensor(0)})) > 1e-2


def test_through_the_pipeline(tiny):
    pipe = build_pipe()
    pipe.set_image_mode()

    def call():
        return pipe(num_inference_steps=4, output_type="latent", generator=torch.Generator().manual_seed(0))[0]

    plain = torch.as_tensor(call())
    before = {**tiny.snapshot(pipe), "scheduler": None}  # which keeps what its last call computed
    with unetaccel.apply(pipe, SkipTuning(0.4, schedule="increasing")) as handle:
        ours = torch.as_tensor(call())
        assert handle.summary().pattern == "FFFF"
    assert torch.isfinite(ours).all()
    assert not torch.equal(ours, plain)
    assert {**tiny.snapshot(pipe), "scheduler": None} == before
    assert torch.equal(torch.as_tensor(call()), plain)


def test_what_means_nothing_here_is_refused():
    model = build_model()
    with pytest.raises(UnsupportedModelError, match=r"DeepCache is not supported on UniDiffuserModel.*cache-dit"):
        unetaccel.apply(model, DeepCache())
    with pytest.raises(SettingError, match="token sequences"):
        unetaccel.apply(model, FreeU(b1=1.2, b2=1.2, s1=0.9, s2=0.2))
    with pytest.raises(SettingError, match=r"this model has none.*use where='concat'"):
        unetaccel.apply(model, SkipTuning(0.5, where="norm_out"))
    assert isinstance(model.transformer.transformer_out_blocks[0]["skip"].skip_linear, nn.Linear)
