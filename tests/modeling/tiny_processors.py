"""Tiny native processors, built offline, with the special tokens that each family expects."""

import json

import transformers
from composed_folders import tiny_tokenizer

VISION = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
ROWS = [f"<row_{row}_col_{col}>" for row in (1, 2) for col in (1, 2)]


def clip(size=28):
    return transformers.CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})


def whisper(bins=4, frames=80):
    """Frames of 20 samples at 8 kHz, ``frames`` of them at most."""
    made = transformers.WhisperFeatureExtractor(
        feature_size=bins, n_fft=256, hop_length=20, sampling_rate=8000, chunk_length=1
    )
    made.n_samples, made.nb_max_frames = frames * 20, frames
    return made


def named(tokenizer, **tokens):
    """Gives a tokenizer the attributes that some processors read."""
    for name, token in tokens.items():
        setattr(tokenizer, name, token)
        setattr(tokenizer, f"{name}_id", tokenizer.convert_tokens_to_ids(token))
    return tokenizer


def llava(tokenizer=None):
    return transformers.LlavaProcessor(
        clip(), tokenizer or tiny_tokenizer("<image>"), patch_size=14, vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )  # fmt: skip


def llava_next():
    images = transformers.LlavaNextImageProcessor(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=[[28, 56], [56, 28]]
    )
    return transformers.LlavaNextProcessor(
        images, tiny_tokenizer("<image>"), patch_size=14, vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )  # fmt: skip


def gemma3():
    marks = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    tokenizer = named(tiny_tokenizer(*marks.values()), **marks)
    return transformers.Gemma3Processor(
        transformers.Gemma3ImageProcessor(size={"height": 56, "width": 56}), tokenizer, image_seq_length=4
    )


def paligemma():
    images = transformers.SiglipImageProcessor(size={"height": 28, "width": 28})
    images.image_seq_length = 4
    return transformers.PaliGemmaProcessor(images, tiny_tokenizer("<image>"))


def idefics2():
    images = transformers.Idefics2ImageProcessor(
        size={"shortest_edge": 28, "longest_edge": 56}, do_image_splitting=False
    )
    tokenizer = tiny_tokenizer("<image>", "<fake_token_around_image>", "<end_of_utterance>")
    return transformers.Idefics2Processor(images, tokenizer, image_seq_len=4)


def idefics3():
    images = transformers.Idefics3ImageProcessor(size={"longest_edge": 112}, max_image_size={"longest_edge": 56})
    tokenizer = tiny_tokenizer("<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>", *ROWS)
    return transformers.Idefics3Processor(images, tokenizer, image_seq_len=4)


def deepseek_vl():
    tokenizer = named(tiny_tokenizer("<image_placeholder>"), image_token="<image_placeholder>")
    images = transformers.DeepseekVLImageProcessor(size={"height": 28, "width": 28}, min_size=14)
    return transformers.DeepseekVLProcessor(images, tokenizer, num_image_tokens=4)


def qwen2_audio():
    return transformers.Qwen2AudioProcessor(whisper(), tiny_tokenizer("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"))


def audioflamingo3():
    return transformers.AudioFlamingo3Processor(
        transformers.WhisperFeatureExtractor(feature_size=8), tiny_tokenizer("<sound>")
    )


def write_qwen2_vl(folder):
    """A Qwen2-VL source's processor files, as its own repository has them; its video part needs torchvision."""
    folder.mkdir(parents=True)
    tiny_tokenizer(*VISION).save_pretrained(folder)
    settings = {
        "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2VLProcessor", "patch_size": 4,
        "merge_size": 2, "temporal_patch_size": 2, "min_pixels": 64, "max_pixels": 1024,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder
