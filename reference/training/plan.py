"""Training plans: all sizes, networks and limits of a run, as plain data.

`cpu` trains on two CPU cores in about two hours: 64x64 pictures of the concepts
of `concepts.json`. `gpu` is the full run: 256x256 pictures of every thing that
several sets draw, with all weights of a one-step model within 64 MB. Tests make
smaller plans with `dataclasses.replace`.
"""

from dataclasses import dataclass, field

from mobilediffusion.config import DecoderConfig, TextConfig, UNetConfig, VaeConfig


@dataclass(frozen=True)
class Stage:
    """Limits and learning rates of one stage. It ends after `minutes` or `steps`, whichever comes first."""

    minutes: float
    steps: int
    batch: int
    rate: tuple[float, float]  # first and last learning rate of the cosine
    ema: float = 0.998


@dataclass(frozen=True)
class Plan:
    """Data, models and stages of one run."""

    size: int  # side of the pictures in pixels
    min_sets: int  # adds every icon that at least this many sets have to concepts.json; 0 adds none
    unet: UNetConfig
    text: TextConfig
    vae: VaeConfig
    decoder: DecoderConfig
    stages: dict[str, Stage]
    adversarial: float = 0.0  # weight of the VAE's discriminator
    pairs: int = 6144  # DDIM trajectories of the base model to distil in the stage `ufogen`; 0 for none
    teacher_steps: int = 10
    guidance: float = 2.0
    about: str = field(default="", compare=False)

    def __post_init__(self):
        found = self.unet.prediction_type
        if found != "v_prediction":
            raise ValueError(f"unet.prediction_type: expected v_prediction, which every stage trains, found {found}")

    @property
    def latent(self) -> int:
        """Side of the latent. The VAE halves the picture three times."""
        return self.size // 8


def small_unet() -> UNetConfig:
    # v-prediction: with epsilon, one step from pure noise divides by a_999 = 0.068 and multiplies
    # the network's error by 14.6, which a network this small cannot afford.
    return UNetConfig(
        sample_size=8, block_out_channels=[64, 128, 160], layers_mid=2, transformer_depth_mid=[1, 1],
        cross_attention_dim=64, attention_head_dim=32, attention_phi="softmax", time_embed_dim=192, time_proj_dim=128,
        norm_num_groups=16, prediction_type="v_prediction",
    )


CPU = Plan(
    about="64x64 pictures of 128 things, two CPU cores, about two hours",
    size=64,
    min_sets=0,
    unet=small_unet(),
    text=TextConfig(hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2),
    vae=VaeConfig(block_out_channels=[24, 48, 80, 96], layers_per_block=1, norm_num_groups=8),
    decoder=DecoderConfig(block_out_channels=[24, 48, 80, 96], layers_per_up_block=[2, 2, 1, 1], norm_num_groups=8),
    stages={
        "vae": Stage(minutes=40, steps=9_000, batch=8, rate=(2e-3, 2e-5)),
        "base": Stage(minutes=50, steps=12_000, batch=32, rate=(8e-4, 3e-5)),
        "relu": Stage(minutes=7, steps=3_000, batch=32, rate=(3e-4, 3e-5)),
        "pairs": Stage(minutes=10, steps=1_000, batch=64, rate=(0, 0)),
        "ufogen": Stage(minutes=25, steps=5_000, batch=32, rate=(5e-4, 3e-5), ema=0.995),
        "decoder": Stage(minutes=18, steps=4_000, batch=16, rate=(1e-3, 3e-5)),
        "words": Stage(minutes=5, steps=600, batch=64, rate=(3e-2, 1e-3)),
    },
)

# A UNet of 30 M parameters would leave no room for the token table within 64 MB; 23 M fits beside it.
GPU = Plan(
    about="256x256 pictures of some 1,400 things, one data-centre GPU, under an hour",
    size=256,
    min_sets=4,
    unet=UNetConfig(
        sample_size=32, block_out_channels=[128, 256, 384], layers_mid=2, transformer_depth_mid=[2, 2],
        cross_attention_dim=64, attention_head_dim=64, attention_phi="softmax", time_embed_dim=256, time_proj_dim=128,
        norm_num_groups=32, prediction_type="v_prediction",
    ),
    text=TextConfig(hidden_size=64, intermediate_size=256, num_hidden_layers=4, num_attention_heads=2),
    vae=VaeConfig(block_out_channels=[48, 64, 96, 128], layers_per_block=1, norm_num_groups=16),
    decoder=DecoderConfig(block_out_channels=[32, 48, 64, 96], layers_per_up_block=[2, 2, 1, 1], norm_num_groups=16),
    stages={
        "vae": Stage(minutes=15, steps=40_000, batch=32, rate=(1e-3, 1e-5), ema=0.999),
        "base": Stage(minutes=20, steps=60_000, batch=256, rate=(5e-4, 1e-5), ema=0.9995),
        "relu": Stage(minutes=4, steps=10_000, batch=256, rate=(1e-4, 1e-5), ema=0.999),
        "pairs": Stage(minutes=10, steps=10_000, batch=256, rate=(0, 0)),
        "ufogen": Stage(minutes=10, steps=10_000, batch=128, rate=(1e-4, 1e-5), ema=0.99),
        "decoder": Stage(minutes=5, steps=20_000, batch=32, rate=(1e-3, 1e-5), ema=0.999),
        "words": Stage(minutes=2, steps=2_000, batch=256, rate=(3e-2, 1e-3)),
    },
    adversarial=0.1,
    pairs=65_536,
)

PLANS = {"cpu": CPU, "gpu": GPU}
