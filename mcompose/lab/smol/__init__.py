"""The family `smol`: SmolLM2-135M with real pretrained encoders, from packages that can be installed offline."""
