"""Configurations of the model's parts, one dataclass per kind of `config.json`.

Field names are the keys of the files. Unknown keys are refused, so that a
misspelt key is not silently replaced by a default.
"""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path


class JsonConfig:
    """Base of all configurations: reading and writing JSON."""

    @classmethod
    def from_dict(cls, values: dict):
        values = dict(values)
        class_name = values.pop("_class_name", cls.class_name)
        if class_name != cls.class_name:
            raise ValueError(f"expected a {cls.class_name} config, found {class_name}")
        unknown = set(values) - {f.name for f in fields(cls)}
        if unknown:
            raise ValueError(f"unknown keys in {cls.class_name} config: {sorted(unknown)}")
        return cls(**values)

    @classmethod
    def load(cls, path):
        """Load a configuration. `path` is a config.json or the folder that holds one."""
        path = Path(path)
        path = path / "config.json" if path.is_dir() else path
        return cls.from_dict(json.loads(path.read_text()))

    def to_dict(self) -> dict:
        head = {"_class_name": self.class_name} if self.write_class_name else {}
        return head | asdict(self)

    def save(self, folder) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.to_dict(), indent=2) + "\n")


def _list(*values):
    return field(default_factory=lambda: list(values))


@dataclass
class UNetConfig(JsonConfig):
    """Configuration of the UNet; by default the full-size one."""

    sample_size: int = 64
    in_channels: int = 8
    out_channels: int = 8
    block_out_channels: list[int] = _list(320, 640, 1024)
    layers_down: list[int] = _list(1, 1)
    layers_mid: int = 5
    layers_up: list[int] = _list(2, 2)
    transformer_depth_down: list[int] = _list(0, 1)
    transformer_depth_mid: list[int] = _list(3, 3, 3, 3, 3)
    transformer_depth_up: list[int] = _list(1, 0)
    self_attention: dict = field(default_factory=lambda: {"down1": False, "mid": True, "up0": False})
    cross_attention_dim: int = 768
    attention_head_dim: int = 64
    attention_phi: str = "relu"
    attention_phi_scale: str = "1/num_keys"
    share_kv_self_attention: bool = True
    ff_mult: int = 3
    ff_activation: str = "swiglu"
    sep_kind: str = "convnext"
    sep_kernel: int = 3
    sep_expansion: int = 6
    sep_width_of: str = "out"
    sep_samplers: list[str] = _list()
    time_embed_dim: int = 512
    time_proj_dim: int = 320
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    transformer_norm_eps: float = 1e-6
    layer_norm_eps: float = 1e-5
    prediction_type: str = "epsilon"

    class_name = "MobileDiffusionUNet"
    write_class_name = True

    def __post_init__(self):
        """Raise an error for settings that the twin does not implement."""
        for key, allowed in {
            "attention_phi": ("relu", "softmax"),
            "attention_phi_scale": ("1/num_keys",),
            "ff_activation": ("swiglu", "geglu"),
            "sep_kind": ("convnext", "glu", "convnext2"),
            "sep_width_of": ("out", "in"),
            "sep_samplers": ([], ["down1"]),
            "flip_sin_to_cos": (True,),
            "freq_shift": (0,),
            "prediction_type": ("epsilon", "v_prediction", "sample"),
        }.items():
            if getattr(self, key) not in allowed:
                raise ValueError(f"{key} = {getattr(self, key)!r} is not one of {allowed}")
        if self.layers_up != [self.layers_down[1] + 1, self.layers_down[0] + 1]:
            raise ValueError("each up block needs one layer more than the down block whose skips it consumes")
        if len(self.mid_self_attention()) != self.layers_mid:
            raise ValueError(f"self_attention.mid has {len(self.mid_self_attention())} values for {self.layers_mid} layers")

    def head_dim(self, d: int) -> int:
        """Width of an attention head at width d."""
        return self.attention_head_dim

    def mid_self_attention(self) -> list[bool]:
        """Return for each stack of the middle whether it has self-attention. One value in the file stands for all."""
        mid = self.self_attention["mid"]
        return mid if isinstance(mid, list) else [mid] * self.layers_mid

    def to_dict(self) -> dict:
        """Return the values to write.

        `sep_samplers` is left out if empty, since the paper's configuration has no such key.
        """
        return {key: value for key, value in super().to_dict().items() if key != "sep_samplers" or value}


# Other readings of the paper (docs/model.md, section 1.8), as changes to the full-size configuration.
ALTERNATIVES = {
    "alt-1": {"sep_kind": "glu", "sep_expansion": 4},
    "alt-2": {"sep_kind": "convnext2", "sep_expansion": 3},
    "alt-4": {"sep_kind": "glu", "sep_expansion": 3, "sep_width_of": "in", "time_embed_dim": 1280},
    "alt-7": {
        "sep_kind": "glu", "sep_expansion": 3, "sep_width_of": "in", "sep_samplers": ["down1"], "time_embed_dim": 320,
        "transformer_depth_mid": [1, 5, 5, 5, 1], "transformer_depth_up": [0, 0],
        "self_attention": {"down1": False, "mid": [False, True, True, True, False], "up0": False},
    },
}


@dataclass
class StableDiffusionConfig(JsonConfig):
    """Configuration of Stable Diffusion 1.5's UNet, with diffusers' keys.

    Values that diffusers fixes in its code follow the keys, under the names that the blocks read.
    """

    sample_size: int = 64
    in_channels: int = 4
    out_channels: int = 4
    center_input_sample: bool = False
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    down_block_types: list[str] = _list(*["CrossAttnDownBlock2D"] * 3, "DownBlock2D")
    up_block_types: list[str] = _list("UpBlock2D", *["CrossAttnUpBlock2D"] * 3)
    block_out_channels: list[int] = _list(320, 640, 1280, 1280)
    layers_per_block: int = 2
    downsample_padding: int = 1
    mid_block_scale_factor: float = 1
    act_fn: str = "silu"
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int = 768
    attention_head_dim: int = 8  # the number of heads, in spite of its name

    class_name = "UNet2DConditionModel"
    write_class_name = True
    prediction_type = "epsilon"
    attention_phi = "softmax"
    share_kv_self_attention = False
    ff_mult, ff_activation = 4, "geglu"
    transformer_norm_eps, layer_norm_eps = 1e-6, 1e-5

    def __post_init__(self):
        for key, value in {
            "center_input_sample": False, "flip_sin_to_cos": True, "freq_shift": 0, "downsample_padding": 1,
            "mid_block_scale_factor": 1, "act_fn": "silu",
        }.items():
            if getattr(self, key) != value:
                raise ValueError(f"{key} = {getattr(self, key)!r} is not {value!r}")
        if not set(self.down_block_types) <= {"CrossAttnDownBlock2D", "DownBlock2D"}:
            raise ValueError(f"down_block_types = {self.down_block_types} has unknown kinds")
        if self.up_block_types != [kind.replace("Down", "Up") for kind in reversed(self.down_block_types)]:
            raise ValueError("up_block_types do not mirror down_block_types")
        if len(self.down_block_types) != len(self.block_out_channels):
            raise ValueError("down_block_types and block_out_channels differ in length")

    @property
    def time_proj_dim(self) -> int:
        return self.block_out_channels[0]

    @property
    def time_embed_dim(self) -> int:
        return 4 * self.block_out_channels[0]

    def head_dim(self, d: int) -> int:
        """Width of an attention head at width d."""
        return d // self.attention_head_dim


@dataclass
class DecoderConfig(JsonConfig):
    """Configuration of the light decoder. `block_out_channels` are listed from the picture to the latent."""

    latent_channels: int = 8
    out_channels: int = 3
    block_out_channels: list[int] = _list(64, 128, 256, 256)
    layers_per_up_block: list[int] = _list(3, 3, 3, 3)
    norm_num_groups: int = 32
    norm_eps: float = 1e-6
    scaling_factor: float = 1.0

    class_name = "LightDecoder"
    write_class_name = True


@dataclass
class VaeConfig(JsonConfig):
    """Configuration of the full VAE, with diffusers' keys. `block_out_channels` are listed from picture to latent."""

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: list[str] = _list(*["DownEncoderBlock2D"] * 4)
    up_block_types: list[str] = _list(*["UpDecoderBlock2D"] * 4)
    block_out_channels: list[int] = _list(128, 256, 512, 512)
    layers_per_block: int = 2
    act_fn: str = "silu"
    latent_channels: int = 8
    norm_num_groups: int = 32
    scaling_factor: float = 1.0

    class_name = "AutoencoderKL"
    write_class_name = True
    norm_eps = 1e-6  # fixed in diffusers, so there is no key for it

    def __post_init__(self):
        levels = len(self.block_out_channels)
        if self.down_block_types != ["DownEncoderBlock2D"] * levels or self.up_block_types != ["UpDecoderBlock2D"] * levels:
            raise ValueError("every level of the VAE is a DownEncoderBlock2D and an UpDecoderBlock2D")
        if self.act_fn != "silu":
            raise ValueError(f"act_fn = {self.act_fn!r} is not 'silu'")


@dataclass
class TextConfig(JsonConfig):
    """Configuration of the text encoder; by default CLIP ViT-L/14's text tower."""

    vocab_size: int = 49408
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    class_name = "CLIPTextModel"
    write_class_name = False


@dataclass
class SchedulerConfig(JsonConfig):
    """Configuration of the noise schedule; by default that of Stable Diffusion 1.x."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    prediction_type: str = "epsilon"

    class_name = "Scheduler"
    write_class_name = False
