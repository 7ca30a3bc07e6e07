"""What a file of weights is that is no whole model, told by the names of its tensors."""

import re
from collections.abc import Iterable

OPTIMISED = (  # keys that only weights of a reduced precision have
    (r".*\.(?:scale_weight|weight_scale|input_scale)$|scaled_fp8$", "scaled fp8"),
    (r".*\.(?:absmax|quant_map|quant_state\..*|bitsandbytes__.*)$", "bitsandbytes"),
    (r".*\.(?:qweight|wscales|smooth_factor)$", "Nunchaku"),
)
OTHERS = (  # what a file is instead, by the names of its tensors; the first that matches is told
    (
        r"(?:lora_|.*\.lora_(?:up|down|A|B)|.*\.hada_|.*\.lokr_|.*_lora\.)",
        "it is a LoRA; put it into `models/loras`",
    ),
    (
        r"(?:control_model\.|.*input_hint_block\.|controlnet_|zero_convs\.)",
        "it is a ControlNet; put it into `models/controlnets`",
    ),
    (r"(?:image_proj|ip_adapter)\.", "it is an IP-Adapter; put it into a folder in `models/controlnets`"),
    (r"(?:emb_params|string_to_param|clip_[lg]$)", "it is a textual inversion and no model"),
    (r"(?:model\.diffusion_model\.)?distilled_guidance_layer\.", "it is Chroma, {folder}"),
    (r"(?:model\.diffusion_model\.)?(?:double_stream|single_stream)_modulation", "it is Flux.2, {folder}"),
    (r"(?:model\.diffusion_model\.)?layers\.0\.adaLN_modulation\.", "it is Z-Image, {folder}"),
    (
        r"(?:model\.diffusion_model\.)?(?:cap_embedder|txtfusion|txt_in\.text_norm|transformer_blocks\.0\.img_mod)",
        "it is of another family, {folder}",
    ),
    (
        r"(?:unet\.|transformer\.)?(?:down_blocks|transformer_blocks|single_transformer_blocks)\.",
        "it is one part of a diffusers folder; copy the whole folder",
    ),
    (
        r"(?:model\.diffusion_model\.)?(?:input_blocks|joint_blocks|double_blocks)\.",
        "it holds only a part of a model (a denoiser without text encoders); get the whole checkpoint",
    ),
    (r"(?:text_model|encoder\.block|embeddings|shared)\.", "it is a text encoder and no whole model"),
    (r"(?:first_stage_model\.|vae\.)?(?:encoder|decoder)\.", "it is a VAE; put it into `models/vae`"),
)
FOLDER = "but its layout is not read as a single file, so get it in diffusers' folder format"


def precision_problem(names: Iterable[str]) -> str:
    """Say why weights of a reduced precision cannot be read; "" if they are plain numbers."""
    for pattern, name in OPTIMISED:
        if any(re.match(pattern, key) for key in names):
            return f"its weights are {name}, which Studio cannot read; get the fp16, bf16 or plain fp8 file"
    return ""


def is_lora(names: Iterable[str]) -> bool:
    return any(re.match(OTHERS[0][0], name) for name in names)


def instead(names: Iterable[str]) -> str:
    """Say what a file is that is no model, and what to do with it."""
    for pattern, reason in OTHERS:
        if any(re.match(pattern, name) for name in names):
            return reason.format(folder=FOLDER)
    return (
        "it is no model that Studio knows; single files can be Stable Diffusion 1.x, 2.x, XL, 3, Flux.1, or the denoisers of Chroma, "
        "Flux.2 klein, Qwen-Image and Z-Image"
    )
