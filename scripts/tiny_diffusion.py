"""`python scripts/tiny_diffusion.py PACKAGES FOLDER`: a Stable Diffusion pipeline with random weights, 7 MB.

Its pictures are noise; all else is as with a real one: text encoder, UNet, decoder, steps, safetensors. No registry of
packages carries the weights of a real one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def make(folder: Path) -> None:
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    tokenizer_folder = folder / "tokenizer"
    tokenizer_folder.mkdir(parents=True)
    words = _vocabulary()
    (tokenizer_folder / "vocab.json").write_text(json.dumps(words))
    (tokenizer_folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(
        str(tokenizer_folder / "vocab.json"), str(tokenizer_folder / "merges.txt"), model_max_length=77
    )
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            projection_dim=32,
            bos_token_id=words["<|startoftext|>"],
            eos_token_id=words["<|endoftext|>"],
            pad_token_id=words["<|endoftext|>"],
        )
    )
    unet = UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        sample_size=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=8,
    )
    decoder = AutoencoderKL(
        block_out_channels=[32, 64, 64, 64],
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        norm_num_groups=8,
    )
    pipeline = StableDiffusionPipeline(
        vae=decoder,
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(str(folder), safe_serialization=True)


def _vocabulary() -> dict[str, int]:
    """Every printable ASCII character, within a word and at its end."""
    characters = [chr(code) for code in range(33, 127)]
    ends = [f"{character}</w>" for character in characters]
    return {word: at for at, word in enumerate([*characters, *ends, "<|startoftext|>", "<|endoftext|>"])}


if __name__ == "__main__":
    sys.path.append(sys.argv[1])
    make(Path(sys.argv[2]))
