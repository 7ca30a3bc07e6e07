"""Tiny models of every family, with random weights, in exact diffusers format: their code paths are real, their pictures are noise."""

import json
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


def _flow(**more: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**{"shift": 3.0} | more)


def qwen_tokenizer() -> Any:
    """Build a tokenizer that knows the words of Qwen-Image's instruction, and letters, with Qwen's chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    words = "system Describe the image by detailing the color, shape, size, texture, quantity, text, spatial relationships of "
    words += "the objects and background: user assistant a red circle on a blue background\n"
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    model.train_from_iterator(
        [words] * 3, trainers.BpeTrainer(vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    )
    told = json.loads(model.to_str())["model"]
    tokenizer = Qwen2Tokenizer(vocab=told["vocab"], merges=[tuple(pair) for pair in told["merges"]])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
        "{% if enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}"
    )
    return tokenizer


def qwen3(tokenizer: Any, layers: int = 2) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=WIDE,
        intermediate_size=WIDE,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=2048,
    )
    return Qwen3ForCausalLM(config).eval()


def z_image(**scheduler: Any) -> Any:
    from diffusers import ZImagePipeline, ZImageTransformer2DModel

    tokenizer = qwen_tokenizer()
    transformer = ZImageTransformer2DModel(
        in_channels=16,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDE,
        axes_dims=[8, 4, 4],
        axes_lens=[512, 32, 32],
    )
    return ZImagePipeline(
        transformer=transformer.eval(),
        scheduler=_flow(shift=6.0) if not scheduler else _flow(**scheduler),
        vae=vae(16, shift_factor=0.1159, scaling_factor=0.3611, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=qwen3(tokenizer),
        tokenizer=tokenizer,
    )


def flux2_klein(*, distilled: bool = False) -> Any:
    import torch
    from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline, Flux2Transformer2DModel

    tokenizer = qwen_tokenizer()
    transformer = Flux2Transformer2DModel(
        in_channels=128,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * WIDE,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    autoencoder = AutoencoderKLFlux2(
        block_out_channels=(8,) * 4, latent_channels=32, norm_num_groups=4, layers_per_block=1, sample_size=64
    )
    autoencoder.bn.running_mean = torch.linspace(-0.5, 0.5, 128)
    autoencoder.bn.running_var = torch.linspace(0.5, 2.0, 128)
    return Flux2KleinPipeline(
        transformer=transformer.eval(),
        scheduler=_flow(use_dynamic_shifting=True),
        vae=autoencoder.eval(),
        text_encoder=qwen3(tokenizer, 28),  # the pipeline reads its layers 9, 18 and 27
        tokenizer=tokenizer,
        is_distilled=distilled,
    )


def qwen_image() -> Any:
    from diffusers import AutoencoderKLQwenImage, QwenImagePipeline, QwenImageTransformer2DModel
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    tokenizer = qwen_tokenizer()
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": WIDE,
            "intermediate_size": WIDE,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "rope_scaling": {"mrope_section": [2, 3, 3], "rope_type": "default", "type": "default"},
            "rope_theta": 1000000.0,
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": WIDE,
        },
        hidden_size=WIDE,
        vocab_size=len(tokenizer),
        vision_end_token_id=1,
        vision_start_token_id=2,
        vision_token_id=3,
    )
    transformer = QwenImageTransformer2DModel(
        in_channels=64,
        out_channels=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDE,
        axes_dims_rope=(4, 6, 6),
    )
    return QwenImagePipeline(
        transformer=transformer.eval(),
        scheduler=_flow(use_dynamic_shifting=True, shift_terminal=0.02),
        vae=AutoencoderKLQwenImage(base_dim=8, dim_mult=[1, 2, 2, 2], num_res_blocks=1).eval(),
        text_encoder=Qwen2_5_VLForConditionalGeneration(config).eval(),
        tokenizer=tokenizer,
    )


def chroma() -> Any:
    from diffusers import ChromaPipeline, ChromaTransformer2DModel

    tokenizer, encoder = t5()
    transformer = ChromaTransformer2DModel(
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDE,
        axes_dims_rope=(4, 4, 8),
        approximator_hidden_dim=32,
        approximator_layers=1,
        approximator_num_channels=16,
    )
    return ChromaPipeline(
        transformer=transformer.eval(),
        scheduler=_flow(use_dynamic_shifting=True),
        vae=vae(16, shift_factor=0.1159, scaling_factor=0.3611, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=encoder,
        tokenizer=tokenizer,
    )


def pixart_sigma() -> Any:
    from diffusers import DPMSolverMultistepScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel

    tokenizer, encoder = t5()
    transformer = PixArtTransformer2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        caption_channels=WIDE,
        cross_attention_dim=24,
        use_additional_conditions=False,
    )
    return PixArtSigmaPipeline(
        transformer=transformer.eval(),
        scheduler=DPMSolverMultistepScheduler(),
        vae=vae(4, scaling_factor=0.13025),
        text_encoder=encoder,
        tokenizer=tokenizer,
    )


def gemma() -> tuple[Any, Any]:
    """Build a tokenizer that knows a few words and letters, and a language model of width 32."""
    from transformers import Gemma2Config, Gemma2Model, GemmaTokenizer

    words = ["<pad>", "<eos>", "<bos>", "<unk>", *map(chr, range(33, 127)), "▁"]
    tokenizer = GemmaTokenizer(vocab={word: place for place, word in enumerate(words)}, merges=[])
    config = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=WIDE,
        intermediate_size=WIDE,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
    )
    return tokenizer, Gemma2Model(config).eval()


def sana() -> Any:
    from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel

    tokenizer, encoder = gemma()
    transformer = SanaTransformer2DModel(
        in_channels=32,
        out_channels=32,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=16,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=WIDE,
        caption_channels=WIDE,
        sample_size=32,
    )
    blocks = 6
    autoencoder = AutoencoderDC(
        latent_channels=32,
        attention_head_dim=2,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(8,) * blocks,
        decoder_block_out_channels=(8,) * blocks,
        encoder_layers_per_block=(1,) * blocks,
        decoder_layers_per_block=(1,) * blocks,
        encoder_qkv_multiscales=((),) * blocks,
        decoder_qkv_multiscales=((),) * blocks,
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        encoder_out_shortcut=False,
        decoder_in_shortcut=False,
        scaling_factor=0.41407,
    )
    return SanaPipeline(
        transformer=transformer.eval(),
        scheduler=DPMSolverMultistepScheduler(flow_shift=3.0, prediction_type="flow_prediction", use_flow_sigmas=True),
        vae=autoencoder.eval(),
        text_encoder=encoder,
        tokenizer=tokenizer,
    )


def lcm() -> Any:
    """Build a distilled UNet: it takes guidance as a number."""
    from diffusers import LatentConsistencyModelPipeline, LCMScheduler

    tokenizer = clip_tokenizer()
    return LatentConsistencyModelPipeline(
        vae=vae(4),
        text_encoder=clip(tokenizer),
        tokenizer=tokenizer,
        unet=unet(WIDE, time_cond_proj_dim=16),
        scheduler=LCMScheduler(beta_schedule="scaled_linear"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl_turbo() -> Any:
    from diffusers import EulerAncestralDiscreteScheduler

    pipe = sdxl()
    pipe.scheduler = EulerAncestralDiscreteScheduler(beta_schedule="scaled_linear", timestep_spacing="trailing")
    return pipe


def kandinsky(kind: str = "", width: int = WIDE) -> Any:
    """Build a decoder with its prior (a kind of "" or "inpaint"), or the prior alone, as it lies on the Hub ("prior").

    Args:
        kind: of the model.
        width: of the embedding of a picture.
    """
    import diffusers
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    tokenizer = clip_tokenizer()
    sees = CLIPVisionConfig(
        hidden_size=width, projection_dim=width, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4,
        image_size=32, patch_size=16,
    )  # fmt: skip
    prior = {
        "prior": diffusers.PriorTransformer(
            num_attention_heads=2, attention_head_dim=12, embedding_dim=width, num_layers=1
        ).eval(),
        "image_encoder": CLIPVisionModelWithProjection(sees).eval(),
        "text_encoder": clip(tokenizer, width, projected=True),
        "tokenizer": tokenizer,
        "scheduler": diffusers.UnCLIPScheduler(
            variance_type="fixed_small_log", prediction_type="sample", clip_sample=True, clip_sample_range=5.0
        ),
        "image_processor": CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32),
    }
    prior["prior"].clip_std.data.fill_(1.0)  # else every embedding is 0
    if kind == "prior":
        return diffusers.KandinskyV22PriorPipeline(**prior)
    decoder = diffusers.UNet2DConditionModel(
        in_channels=9 if kind else 4,
        out_channels=8,  # half of them say the variance
        addition_embed_type="image",
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        block_out_channels=(32, 64),
        layers_per_block=1,
        encoder_hid_dim=width,
        encoder_hid_dim_type="image_proj",
        cross_attention_dim=16,
        attention_head_dim=4,
        resnet_time_scale_shift="scale_shift",
    )
    movq = diffusers.VQModel(
        block_out_channels=(32,) * 4, down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4, norm_num_groups=4, norm_type="spatial", num_vq_embeddings=12, vq_embed_dim=4,
    )  # fmt: skip
    schedule = diffusers.DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="linear", clip_sample=False, variance_type="learned_range"
    )
    together = diffusers.KandinskyV22InpaintCombinedPipeline if kind else diffusers.KandinskyV22CombinedPipeline
    parts = {f"prior_{name}": part for name, part in prior.items()}
    return together(unet=decoder.eval(), scheduler=schedule, movq=movq.eval(), **parts)


KANDINSKY_MODELS: dict[str, Callable[[], Any]] = {
    "kandinsky": kandinsky,
    "kandinsky-inpaint": lambda: kandinsky("inpaint"),
    "hub/decoder": lambda: kandinsky().decoder_pipe,
    "hub/prior": lambda: kandinsky("prior"),
}


def deepfloyd(stage: int = 1) -> Any:
    """Build a first stage, or a second one without a text encoder; both have the parts that Studio leaves out."""
    import diffusers
    from diffusers.pipelines.deepfloyd_if.safety_checker import IFSafetyChecker
    from diffusers.pipelines.deepfloyd_if.watermark import IFWatermarker
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPTextConfig, CLIPVisionConfig

    tokenizer, encoder = t5()
    deep = 2 * stage  # so that the larger one attends to as few cells
    more: dict[str, Any] = {"sample_size": 64, "in_channels": 3}
    if stage == 2:
        more = {"sample_size": 256, "in_channels": 6, "class_embed_type": "timestep"}
    network = diffusers.UNet2DConditionModel(
        out_channels=6,  # half of them say the variance
        down_block_types=("ResnetDownsampleBlock2D",) * deep + ("SimpleCrossAttnDownBlock2D",),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D",) + ("ResnetUpsampleBlock2D",) * deep,
        block_out_channels=(8,) * deep + (16,) if stage == 1 else (4,) * deep + (16,),
        norm_num_groups=4,
        layers_per_block=1,
        encoder_hid_dim=WIDE,
        cross_attention_dim=WIDE,
        cross_attention_norm="group_norm",
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        attention_head_dim=8,
        resnet_time_scale_shift="scale_shift",
        act_fn="gelu",
        **more,
    )
    noise = {"beta_schedule": "squaredcos_cap_v2", "variance_type": "learned_range"}
    path = diffusers.DDPMScheduler(**noise, thresholding=True, sample_max_value=1.5)
    eyes = {
        "hidden_size": WIDE,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "image_size": 32,
    }
    seen = CLIPConfig(
        text_config=CLIPTextConfig(vocab_size=8, **{key: eyes[key] for key in list(eyes)[:4]}),
        vision_config=CLIPVisionConfig(projection_dim=16, patch_size=16, **eyes),
    )
    parts: dict[str, Any] = {
        "tokenizer": tokenizer if stage == 1 else None,
        "text_encoder": encoder if stage == 1 else None,
        "unet": network.eval(),
        "scheduler": path,
        "safety_checker": IFSafetyChecker(seen),
        "feature_extractor": CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32),
        "watermarker": IFWatermarker(),
    }
    if stage == 1:
        return diffusers.IFPipeline(**parts)
    return diffusers.IFSuperResolutionPipeline(**parts, image_noising_scheduler=diffusers.DDPMScheduler(**noise))


DEEPFLOYD_MODELS: dict[str, Callable[[], Any]] = {"first": deepfloyd, "second": lambda: deepfloyd(2)}
FAMILY_MODELS: dict[str, Callable[[], Any]] = {
    "sdxl": sdxl,
    "sd3": sd3,
    "flux": flux,
    "sdxl-inpaint": sdxl_inpaint,
    "depth": depth,
    "sdxl-refiner": sdxl_refiner,
}
LATER_MODELS: dict[str, Callable[[], Any]] = {
    "z-image": z_image,
    "z-image-turbo": lambda: z_image(shift=3.0),
    "flux2-klein": flux2_klein,
    "flux2-klein-distilled": lambda: flux2_klein(distilled=True),
    "qwen-image": qwen_image,
    "chroma": chroma,
    "pixart-sigma": pixart_sigma,
    "sana": sana,
    "lcm": lcm,
    "sdxl-turbo": sdxl_turbo,
}


def save_models(folder: Path, models: dict[str, Callable[[], Any]] = FAMILY_MODELS) -> Path:
    """Build and save every one of them, with weights that do not depend on the others."""
    import torch

    for number, (name, build) in enumerate(models.items()):
        torch.manual_seed(number)
        build().save_pretrained(folder / name)
    return folder
