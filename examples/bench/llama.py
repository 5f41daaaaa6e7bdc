"""The shapes of Llama-type checkpoints of any size: names as transformers writes them, no weights."""

import json
import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Llama:
    """A Llama's dimensions; ``key_value`` is the width of its keys, ``vocabulary`` its rows of embeddings."""

    layers: int
    hidden: int = 2048
    intermediate: int = 8192
    key_value: int = 512
    head: int = 64
    vocabulary: int = 2000

    @property
    def name(self) -> str:
        """Folder name that is unique to these dimensions."""
        wide = "" if self.hidden == Llama(0).hidden else f"-of-{self.hidden}"
        return f"{self.layers}-layers{wide}"

    @property
    def nbytes(self) -> int:
        """Bytes of all weights in bfloat16."""
        return 2 * sum(math.prod(shape) for shape in self.shapes().values())

    def config(self) -> str:
        """Returns the text of ``config.json``."""
        return json.dumps({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.hidden // self.head,
            "num_key_value_heads": self.key_value // self.head,
            "head_dim": self.head,
            "vocab_size": self.vocabulary,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "dtype": "bfloat16",
        })  # fmt: skip

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns name -> shape of all tensors."""
        wide, narrow = (self.hidden, self.hidden), (self.key_value, self.hidden)
        up, down = (self.intermediate, self.hidden), (self.hidden, self.intermediate)
        layer = {
            "self_attn.q_proj": wide, "self_attn.k_proj": narrow, "self_attn.v_proj": narrow, "self_attn.o_proj": wide,
            "mlp.gate_proj": up, "mlp.up_proj": up, "mlp.down_proj": down,
            "input_layernorm": (self.hidden,), "post_attention_layernorm": (self.hidden,),
        }  # fmt: skip
        rows = (self.vocabulary, self.hidden)
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": rows}
        for k in range(self.layers):
            shapes |= {f"model.layers.{k}.{name}.weight": shape for name, shape in layer.items()}
        return shapes | {"model.norm.weight": (self.hidden,), "lm_head.weight": rows}


def of_size(gb: float) -> Llama:
    """Returns a model of about the given size in bfloat16: 2048 wide, 0.12 GB a layer; narrower below 0.1 GB."""
    narrow = {"hidden": 512, "intermediate": 2048, "key_value": 128} if gb < 0.1 else {}
    none, one = (Llama(layers, **narrow).nbytes for layers in (0, 1))
    return Llama(max(1, round((gb * 1e9 - none) / (one - none))), **narrow)
