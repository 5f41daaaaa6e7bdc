"""Real pretrained weights, composed: a language model, an image encoder and a speech encoder, from packages.

    python -m examples.real.run            # half an hour on two cores, most of it training

Everything comes from package registries (no Hub): SmolLM2-135M-Instruct (4-bit, dequantised; Apache-2.0), a ViT of
DINOv2-small's shape (MIT), the Whisper base encoder (MIT), drawn shapes with questions (easy-vqa, MIT) and spoken
digits (Asterisk's English sounds, CC-BY-SA 3.0, used as they are and not passed on). Reading the ViT needs
`pip install onnx`.
"""
