"""Tiny models of every family, with random weights, in exact diffusers format: their code paths are real, their pictures are noise."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.conftest import MODELS

WIDE = 32  # of the first text encoder; the second differs, so that nothing can mix them up


def clip_tokenizer(**more: Any) -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(MODELS / "shapes" / "tokenizer", **more)


def clip(tokenizer: Any, width: int = WIDE, *, projected: bool = False, layers: int = 3) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def t5() -> tuple[Any, Any]:
    """Build a tokenizer that knows a few words and letters, and an encoder of width 32."""
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    pieces = ["<pad>", "</s>", "<unk>", "▁", *map(chr, range(33, 127)), "▁a", "▁red", "▁circle", "▁blue", "▁word"]
    tokenizer = T5Tokenizer(vocab=[(piece, -float(len(pieces) - i)) for i, piece in enumerate(pieces)], extra_ids=0)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=WIDE, d_kv=8, d_ff=32, num_layers=1, num_heads=4, decoder_start_token_id=0
    )
    return tokenizer, T5EncoderModel(config).eval()


def vae(channels: int, **more: Any) -> Any:
    """Build an autoencoder with eight pixels a cell."""
    from diffusers import AutoencoderKL

    blocks = 4
    return AutoencoderKL(
        block_out_channels=(8,) * blocks,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        latent_channels=channels,
        norm_num_groups=4,
        **more,
    ).eval()


def unet(context: int, channels: int = 4, **more: Any) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        in_channels=channels,
        sample_size=8,
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=context,
        **more,
    ).eval()


def sdxl(channels: int = 4, class_name: str = "StableDiffusionXLPipeline") -> Any:
    import diffusers

    first, second = clip_tokenizer(), clip_tokenizer(pad_token="!")
    wide = 40
    micro = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
    return getattr(diffusers, class_name)(
        vae=vae(4, scaling_factor=0.13025),
        text_encoder=clip(first),
        text_encoder_2=clip(second, wide, projected=True, layers=4),
        tokenizer=first,
        tokenizer_2=second,
        unet=unet(WIDE + wide, channels, projection_class_embeddings_input_dim=wide + 6 * 8, **micro),
        scheduler=diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear", timestep_spacing="leading"),
    )


def sdxl_refiner() -> Any:
    """Build a refiner: the second text encoder only, and an aesthetic score in place of the size."""
    import diffusers

    second, wide = clip_tokenizer(pad_token="!"), 40
    micro = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
    return diffusers.StableDiffusionXLImg2ImgPipeline(
        vae=vae(4, scaling_factor=0.13025),
        text_encoder=None,
        text_encoder_2=clip(second, wide, projected=True, layers=4),
        tokenizer=None,
        tokenizer_2=second,
        unet=unet(wide, projection_class_embeddings_input_dim=wide + 5 * 8, **micro),
        scheduler=diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear", timestep_spacing="leading"),
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
    )


def sdxl_inpaint() -> Any:
    return sdxl(9, "StableDiffusionXLInpaintPipeline")


def sd3(layers: int = 2, **more: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    first, second = clip_tokenizer(), clip_tokenizer(pad_token="!")
    tokenizer, encoder = t5()
    transformer = SD3Transformer2DModel(
        sample_size=32,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=layers,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        pos_embed_max_size=32,
        **more,
    )
    return StableDiffusion3Pipeline(
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(16, shift_factor=0.0609, scaling_factor=1.5305, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip(first, 12, projected=True),
        tokenizer=first,
        text_encoder_2=clip(second, 20, projected=True),
        tokenizer_2=second,
        text_encoder_3=encoder,
        tokenizer_3=tokenizer,
    )


def flux() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    first = clip_tokenizer()
    tokenizer, encoder = t5()
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    )
    return FluxPipeline(
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae(16, shift_factor=0.1159, scaling_factor=0.3611, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip(first),
        tokenizer=first,
        text_encoder_2=encoder,
        tokenizer_2=tokenizer,
    )


def depth() -> Any:
    from diffusers import DDIMScheduler, StableDiffusionDepth2ImgPipeline
    from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor

    tokenizer = clip_tokenizer()
    config = DPTConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=32,
        image_size=32,
        patch_size=16,
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        backbone_out_indices=[0, 1, 2, 3],
    )
    return StableDiffusionDepth2ImgPipeline(
        vae=vae(4),
        text_encoder=clip(tokenizer),
        tokenizer=tokenizer,
        unet=unet(WIDE, 5),
        scheduler=DDIMScheduler(beta_schedule="scaled_linear"),
        depth_estimator=DPTForDepthEstimation(config).eval(),
        feature_extractor=DPTImageProcessor(size={"height": 32, "width": 32}),
    )


FAMILY_MODELS: dict[str, Callable[[], Any]] = {
    "sdxl": sdxl,
    "sd3": sd3,
    "flux": flux,
    "sdxl-inpaint": sdxl_inpaint,
    "depth": depth,
    "sdxl-refiner": sdxl_refiner,
}


def save_models(folder: Path) -> Path:
    """Build and save every one of them, with weights that do not depend on the others."""
    import torch

    for number, (name, build) in enumerate(FAMILY_MODELS.items()):
        torch.manual_seed(number)
        build().save_pretrained(folder / name)
    return folder
