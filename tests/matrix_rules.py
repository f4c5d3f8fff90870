"""What each test shows in the matrix: its section, row, columns and words. Labels turn test names into those of users."""

from __future__ import annotations

from dataclasses import dataclass, field

from architectures import ARCHITECTURES

INTRODUCTIONS = {
    "U-Nets": "For every cut: the full view equals the original U-Net, and a cached step on the same inputs equals the full "
    "step, bit for bit; edited skips equal editing by hand, bit for bit. Seeded small models of the real classes.",
    "Pipelines": "For each: interval 1 gives the plain bits, interval 3 the planned pattern (counted by hooks on the model), "
    "a second call the same bits, and removal the original U-Net.",
    "Add-ons": "The same bits and pattern whether it comes before `apply` or while applied, and gone when it is taken away.",
    "ControlNet does less on cached steps": "Bit for bit as with the ControlNet run in full.",
    "Schedulers": "At 8 and 20 steps: as many evaluations as planned, by hooks, and two calls in a row the same.",
    "Offload and casting": "Three calls in a row the same, the pattern right, removal exact; real hooks, with the CPU in both "
    "roles.",
    "Compile and export": "Graphs counted by the compiler's backend; outputs equal eager ones.",
    "Sharing, threads and failure": "",
    "Refused by name": "What `apply` (or the call) says instead of going wrong.",
}
"""The sections in order, and how their entries are shown to hold."""

LABELS = {
    "before": "before",
    "after": "while",
    "sd": "SD 1.x",
    "sdxl": "SDXL",
    "svd": "SVD",
    "ldm": "LDM",
    "ddpm": "DDPM",
    "animatediff": "AnimateDiff",
    "before apply": "before `apply`",
    "after apply": "while applied",
    "a_lora_loaded_before_apply": "LoRA",
    "torch": "PyTorch's dynamic quantisation",
    "by hand": "any replaced linear layers",
    "torchao": "torchao, int8 weights",
    "bitsandbytes, 8 bits": "bitsandbytes, 8 bits (layers on a CPU)",
    "bitsandbytes, 4 bits": "bitsandbytes, 4 bits (layers on a CPU)",
    "audioldm_2": "text to sound",
    "kandinsky_2_1": "Kandinsky 2.1",
    "kandinsky_2_1_img2img": "Kandinsky 2.1 img2img",
    "dreamlite": "text2img",
    "dreamlite_mobile": "text2img",
    "dreamlite_editing_a_picture": "editing a picture",
    "image_to_video_by_i2vgen_xl": "image to video",
    "an_exception_leaves_nothing_behind": "an exception or KeyboardInterrupt in the U-Net, the scheduler or a callback",
}
"""Names and parameters of tests in a user's words; others lose their underscores."""

_UNETS = {
    "sd": "SD 1.x",
    "sd2": "SD 2.x",
    "sd-4-levels": "SD with four levels",
    "one-layer": "one layer a block",
    "three-layers": "three layers a block",
    "no-mid-block": "without a mid block",
    "class-conditioned": "class-conditioned",
    "simple-cross-attention": "simple cross-attention blocks",
    "sdxl": "SDXL base",
    "sdxl-refiner": "SDXL refiner",
    "kandinsky": "Kandinsky 2.2",
    "kandinsky-2.1": "Kandinsky 2.1",
    "deepfloyd": "DeepFloyd IF",
    "ddpm": "DDPM",
    "ldm": "LDM, unconditional",
    "audioldm2": "AudioLDM 2",
    "dreamlite": "DreamLite",
    "animatediff": "AnimateDiff",
    "svd": "SVD",
    "text-to-video": "text to video",
    "i2vgen-xl": "I2VGen-XL",
}
UNETS = {name: f"{_UNETS.get(name, name)} (`{cls.__name__}`)" for name, (cls, _) in ARCHITECTURES.items()}


@dataclass(frozen=True)
class Rule:
    """Tests of ``file`` whose name matches ``test`` fill a cell. {0}, {1} are the groups of ``test``, as labels;

    {pipeline} is the class that the test gave to ``apply``, {refusal} the first refusal that it met.
    """

    file: str
    test: str
    section: str
    row: str
    item: str = ""
    columns: tuple[str, ...] = ("verified",)
    labels: dict[str, str] = field(default_factory=lambda: LABELS)


BOTH = ("before apply", "after apply")
FAILURE, SHARING = "failure and interruption", "several pipelines, loops and threads"


def refused(file: str, test: str, row: str = "{0}") -> Rule:
    return Rule(file, test, "Refused by name", row, "{refusal}", ("what it says",))


RULES = (
    Rule(
        "test_views",
        r"test_every_cut_of_every_architecture\[(.+)-(\d+)\]",
        "U-Nets",
        "{0}",
        "{1}",
        ("cuts",),
        UNETS,
    ),
    Rule(
        "test_views",
        r"test_sizes_that_do_not_divide\[(.+)-size\d+\]",
        "U-Nets",
        "{0}",
        "every cut",
        ("sizes that do not divide",),
        UNETS,
    ),
    Rule(
        "test_views",
        r"test_unets_that_take_no_other_sizes\[(.+)\]",
        "U-Nets",
        "{0}",
        "diffusers takes none",
        ("sizes that do not divide",),
        UNETS,
    ),
    Rule(
        "test_skip_tuning",
        r"test_every_architecture_equals_scaling_by_hand\[(.+)\]",
        "U-Nets",
        "{0}",
        "at every skip",
        ("edited skips",),
        UNETS,
    ),
    # --- refused
    refused("test_refusals", r"test_other_unets_are_refused_by_name\[(.+)\]", "`{0}`"),
    refused("test_refusals", r"test_the_latent_upscaler_(are|is)_refused.*", "`StableDiffusionLatentUpscalePipeline`"),
    refused("test_refusals", r"test_ncsnpp_is_refused.*\[(.*)\]", "{0}SkipDownBlock2D and {0}SkipUpBlock2D (NCSN++)"),
    refused("test_pipelines", r"test_controlnet_xs_is_refused_by_name()", "{pipeline}"),
    refused("test_pipelines", r"test_pipelines_that_read_deep_attention_are_refused_by_name()", "{pipeline}"),
    refused("test_pipelines", r"test_schedulers_(.+)_are_refused_by_name", "{pipeline}"),
    Rule(
        "test_pipelines",
        r"test_panoramas_run_plain_and_say_so",
        "Refused by name",
        "{pipeline}",
        "runs plain and says so: neighbouring evaluations are of different parts of the picture",
        ("what it says",),
    ),
    refused("test_other_families", r"test_kandinsky_with_its_prior_is_refused.*()", "Kandinsky's combined pipelines"),
    refused(
        "test_restore", r"test_a_model_patched_by_the_official_helper_is_refused()", "DeepCacheSDHelper is enabled"
    ),
    refused("test_restore", r"test_hooks_on_a_block_that_runs_in_parts_are_refused()", "forward hooks on whole blocks"),
    refused(
        "test_restore",
        r"test_compiling_the_accelerated_unet_is_refused.*()",
        "`torch.compile(pipe.unet)` after `apply`",
    ),
    refused("test_compile", r"test_(.*refused).*"),
    refused(
        "test_skips", r"test_compiled_unets_are_(refused).*", "a U-Net that `torch.compile` wrapped before `apply`"
    ),
    refused("test_offload", r"test_(group.*refused).*", "group offload of whole blocks"),
    refused("test_group_offload", r"test_(.*refused).*", "group offload of whole blocks with prefetching"),
    # --- pipelines
    Rule("test_pipelines", r"test_pipelines\[(.+)\]", "Pipelines", "{pipeline}", "{0}"),
    Rule(
        "test_pipelines",
        r"test_guidance_cut_off_by_diffusers_own_callback",
        "Pipelines",
        "{pipeline}",
        "guidance cut off by diffusers' callback",
    ),
    Rule(
        "test_pipelines",
        r"test_base_and_refiner_are_accelerated_apart",
        "Pipelines",
        "{pipeline}",
        "base and refiner, either accelerated or both",
    ),
    Rule(
        "test_pipelines",
        r"test_rules_see_the_timesteps_that_are_visited\[(.+)-\w+\]",
        "Pipelines",
        "{pipeline}",
        "schedules by rule over {0} of the noise levels",
    ),
    Rule("test_video", r"test_(.+)", "Pipelines", "{pipeline}", "{0}"),
    Rule("test_other_families", r"test_((?!the_).+)", "Pipelines", "{pipeline}", "{0}"),
    # --- add-ons
    Rule("test_addons", r"test_a_lora_loaded_before_apply", "Add-ons", "LoRA", "loaded, scaled, unloaded", BOTH[:1]),
    Rule(
        "test_addons",
        r"test_loras_loaded_set_fused_and_unloaded_while_applied",
        "Add-ons",
        "LoRA",
        "loaded, two at once, switched, fused, unfused, disabled, enabled, deleted, hotswapped, unloaded",
        BOTH[1:],
    ),
    Rule("test_addons", r"test_ip_adapter\[(.+)\]", "Add-ons", "IP-Adapter", "{0}", BOTH),
    Rule("test_addons", r"test_attention_processors_set_after_apply", "Add-ons", "attention processors", columns=BOTH),
    Rule("test_addons", r"test_(.+)\[(before|after)\]", "Add-ons", "{0}", columns=("{1} apply",)),
    Rule("test_either_order", r"test_textual_inversion.*", "Add-ons", "textual inversion", columns=BOTH),
    Rule("test_either_order", r"test_switched_on_before_or_after_apply\[(.+)\]", "Add-ons", "{0}", columns=BOTH),
    Rule("test_quantised", r"test_quantised_before_or_after_apply\[(.+)\]", "Add-ons", "quantised: {0}", columns=BOTH),
    Rule(
        "test_quantised",
        r"test_a_quantised_model_as_diffusers_loads_it",
        "Add-ons",
        "quantised: torchao, int8 weights",
        "loaded with `quantization_config`",
        BOTH[:1],
    ),
    # --- the rest
    Rule(
        "test_controlnet",
        r"test_(equal_to_running_in_full)\[.+\]",
        "ControlNet does less on cached steps",
        "one and two",
        "{0}",
    ),
    Rule("test_controlnet", r"test_(.+)", "ControlNet does less on cached steps", "one and two", "{0}"),
    Rule("test_schedulers", r"test_every_scheduler\[(.+?)-\d+\]", "Schedulers", "classes", "`{0}`"),
    Rule("test_schedulers", r"test_other_predictions\[(\w+)-(\w+)-\d+\]", "Schedulers", "predictions", "{1}"),
    Rule("test_schedulers", r"test_other_noise_levels\[(\w+)-(\w+)\]", "Schedulers", "noise levels", "`{1}`"),
    Rule("test_schedulers", r"test_other_solvers\[(.+)\]", "Schedulers", "solvers", "{0}"),
    Rule(
        "test_schedulers", r"test_timesteps_of_ones_own\[.+\]", "Schedulers", "`timesteps=` and `sigmas=` of one's own"
    ),
    Rule(
        "test_offload",
        r"test_repeated_calls_.+\[(before|after)-(.+)\]",
        "Offload and casting",
        "{1}",
        columns=("{0} apply",),
    ),
    Rule("test_offload", r"test_(.+)\[(?:(.+)-)?(before|after)\]", "Offload and casting", "{0}", "{1}", ("{2} apply",)),
    Rule("test_offload", r"test_(.+)\[(before|after)(?:-(.+))?\]", "Offload and casting", "{0}", "{2}", ("{1} apply",)),
    Rule(
        "test_group_offload",
        r"test_whole_pipelines\[(.+)-(.+)-(before|after)\]",
        "Offload and casting",
        "{0}",
        "{1}",
        ("{2} apply",),
    ),
    Rule(
        "test_compile",
        r"test_every_kind_of_unet_is_one_graph_per_view\[(.+)\]",
        "Compile and export",
        "one graph per view",
        "{0}",
        labels=UNETS,
    ),
    Rule("test_compile", r"test_(.+?)(?:\[(.+)\])?", "Compile and export", "{0}", "{1}"),
    Rule("test_sharing", r"test_(.+?)(?:\[(.+)\])?", "Sharing, threads and failure", "{0}", "{1}"),
    Rule(
        "test_run", r"test_(an_exception_leaves_nothing_behind)\[.+\]", "Sharing, threads and failure", FAILURE, "{0}"
    ),
    Rule("test_run", r"test_(an_abandoned.+|features_are.+)", "Sharing, threads and failure", FAILURE, "{0}"),
    Rule("test_interruptions", r"test_(two_threads.+)", "Sharing, threads and failure", SHARING, "{0}"),
    Rule("test_interruptions", r"test_(.+?)(?:\[.+\])?", "Sharing, threads and failure", FAILURE, "{0}"),
    Rule(
        "test_run",
        r"test_(two_.+|pipelines_that_call_twice.+|runs_nest)",
        "Sharing, threads and failure",
        SHARING,
        "{0}",
    ),
    Rule(
        "test_run",
        r"test_changes_within_a_run_force_a_full_evaluation\[(.+)\]",
        "Sharing, threads and failure",
        "changes within a call force a full evaluation",
        "{0}",
    ),
)
"""The first rule that matches a test counts."""
