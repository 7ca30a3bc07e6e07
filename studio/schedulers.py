"""Sampling methods: A1111's names, the diffusers class behind each, and which noise schedules it can follow.

A new one is a line in `SCHEDULERS`. Sigma schedules: Karras et al. 2022 (arXiv:2206.00364, equation 5), exponential (equal steps
of log sigma), beta (Lee et al. 2024, arXiv:2407.12173), SGM Uniform (equal steps of time that begin at its very end, diffusers'
`trailing`: Lin et al. 2023, arXiv:2305.08891, table 2).
"""

from dataclasses import dataclass, field
from typing import Literal, get_args

Sigmas = Literal["automatic", "normal", "karras", "exponential", "beta", "sgm_uniform"]
SIGMAS: tuple[str, ...] = get_args(Sigmas)
SIGMA_LABELS = {
    "automatic": "Automatic",
    "normal": "Normal",
    "karras": "Karras",
    "exponential": "Exponential",
    "beta": "Beta",
    "sgm_uniform": "SGM Uniform",
}
SIGMA_OPTIONS = {"karras": "use_karras_sigmas", "exponential": "use_exponential_sigmas", "beta": "use_beta_sigmas"}
SPACINGS = {"sgm_uniform": "trailing"}
ALL = SIGMAS
OWN = ("automatic", "normal")
SPACED = (*OWN, "sgm_uniform")


@dataclass(frozen=True)
class Scheduler:
    """A sampling method.

    Attributes:
        class_name: in diffusers.
        sigmas: the schedule types that the class can follow.
        overrides: of the model's scheduler config.
        noise: the kind of model it works for: `diffusion`, `edm`, `flow`, `flow-solver` or `ve`.
        eta: whether the class reads `eta`.
        seeded_sigmas: whether the class draws its noise from its own Brownian tree, which must be given the seeds.
    """

    class_name: str
    sigmas: tuple[str, ...] = ALL
    overrides: dict[str, object] = field(default_factory=dict)
    noise: str = "diffusion"
    eta: bool = False
    seeded_sigmas: bool = False


PREDICT_CORRECT = "Predictor-corrector"
FLOW_SIGMAS: dict[str, object] = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
SCHEDULERS: dict[str, Scheduler] = {
    "DPM++ 2M": Scheduler(
        "DPMSolverMultistepScheduler", overrides={"algorithm_type": "dpmsolver++", "solver_order": 2}
    ),
    "DPM++ 2M SDE": Scheduler(
        "DPMSolverMultistepScheduler", overrides={"algorithm_type": "sde-dpmsolver++", "solver_order": 2}
    ),
    "DPM++ SDE": Scheduler("DPMSolverSDEScheduler", seeded_sigmas=True),
    "DPM++ 2S": Scheduler(
        "DPMSolverSinglestepScheduler",
        ("automatic", "normal", "karras", "exponential", "beta"),
        {"algorithm_type": "dpmsolver++", "solver_order": 2},
    ),
    "Euler": Scheduler("EulerDiscreteScheduler"),
    "Euler a": Scheduler("EulerAncestralDiscreteScheduler", SPACED),
    "Heun": Scheduler("HeunDiscreteScheduler"),
    "LMS": Scheduler("LMSDiscreteScheduler"),
    "DPM2": Scheduler("KDPM2DiscreteScheduler"),
    "DPM2 a": Scheduler("KDPM2AncestralDiscreteScheduler"),
    "UniPC": Scheduler("UniPCMultistepScheduler"),
    "DEIS": Scheduler("DEISMultistepScheduler"),
    "DDIM": Scheduler("DDIMScheduler", SPACED, {"clip_sample": False}, eta=True),
    "DDPM": Scheduler("DDPMScheduler", SPACED, {"clip_sample": False}),
    "PNDM": Scheduler("PNDMScheduler", SPACED, {"skip_prk_steps": True}),
    "LCM": Scheduler("LCMScheduler", OWN, {"clip_sample": False}),
    "TCD": Scheduler("TCDScheduler", OWN, {"clip_sample": False}, eta=True),
    "EDM Euler": Scheduler("EDMEulerScheduler", ("automatic", "karras", "exponential"), noise="edm"),
    "EDM DPM++ 2M": Scheduler("EDMDPMSolverMultistepScheduler", ("automatic", "karras", "exponential"), noise="edm"),
    # No FlowMatchLCM: it draws noise at each step, and the pipelines give it no generator, so no seed decides it.
    "Flow Euler": Scheduler(
        "FlowMatchEulerDiscreteScheduler", ("automatic", "karras", "exponential", "beta"), noise="flow"
    ),
    "Flow Heun": Scheduler("FlowMatchHeunDiscreteScheduler", ("automatic",), noise="flow"),
    # The solvers of diffusion along a flow, for pipelines that ask for no noise levels of their own.
    "Flow DPM++ 2M": Scheduler("DPMSolverMultistepScheduler", ("automatic",), FLOW_SIGMAS, noise="flow-solver"),
    "Flow UniPC": Scheduler("UniPCMultistepScheduler", ("automatic",), FLOW_SIGMAS, noise="flow-solver"),
    PREDICT_CORRECT: Scheduler("ScoreSdeVeScheduler", ("automatic",), noise="ve"),
}

ALIASES = {
    "plms": "PNDM",
    "unipcmultistep": "UniPC",
    "dpm++ single-step": "DPM++ 2S",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_sde": "DPM++ SDE",
    "euler_a": "Euler a",
    "euler ancestral": "Euler a",
    "euler_ancestral": "Euler a",
    "dpm_2": "DPM2",
    "dpm_2_ancestral": "DPM2 a",
    "uni_pc": "UniPC",
    "k_euler": "Euler",
    "k_euler_a": "Euler a",
}

KINDS = {
    "EDM": "edm",
    "FlowMatch": "flow",
    "CM": "consistency",
    "ScoreSdeVe": "ve",
}  # prefixes of a model's own scheduler class


def canonical(name: str) -> str | None:
    """Return the name in `SCHEDULERS` for an A1111 name, an alias or a diffusers class name, or None."""
    wanted = name.strip().lower()
    for known, scheduler in SCHEDULERS.items():
        if wanted in (
            known.lower(),
            scheduler.class_name.lower(),
            scheduler.class_name.removesuffix("Scheduler").lower(),
        ):
            return known
    return ALIASES.get(wanted)


def noise_kind(class_name: str, *, flow_sigmas: bool = False) -> str:
    """Return `diffusion`, `edm`, `flow`, `flow-solver`, `ve` or `consistency` for the scheduler class that a model was saved with.

    Args:
        class_name: in diffusers.
        flow_sigmas: whether its config has `use_flow_sigmas`.
    """
    if flow_sigmas:
        return "flow-solver"
    return next((kind for prefix, kind in KINDS.items() if class_name.startswith(prefix)), "diffusion")


def scheduler_problem(name: str, sigmas: str, noise: str | None = None) -> str | None:
    """Say why a method cannot follow a schedule, or cannot work for a model's kind of noise; None if it can."""
    scheduler = SCHEDULERS[name]
    if sigmas not in scheduler.sigmas:
        return f"sigmas={sigmas!r} does not work with {name}; use one of: {', '.join(scheduler.sigmas)}"
    if noise is not None and scheduler.noise != noise:
        fitting = [other for other, candidate in SCHEDULERS.items() if candidate.noise == noise]
        return f"scheduler={name!r} does not work with this model ({noise} noise); use one of: {', '.join(fitting)}"
    return None
