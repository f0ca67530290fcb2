"""A tiny MAE-like ViT state dict: 32 px, patch 8, width 128, 3 blocks, 2 heads."""

import torch

WIDTH, DEPTH, TOKENS = 128, 3, 17


def mae_state(seed: int = 0) -> dict[str, torch.Tensor]:
    """All tensors drawn from a normal distribution of standard deviation 0.1, norms around 1."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return 0.1 * torch.randn(shape, generator=generator)

    state = {"cls_token": draw(1, 1, WIDTH), "pos_embed": draw(1, TOKENS, WIDTH)}
    layers = {"patch_embed.proj": (WIDTH, 3, 8, 8)}
    for index in range(DEPTH):
        block = f"blocks.{index}."
        layers |= {block + "attn.qkv": (3 * WIDTH, WIDTH), block + "attn.proj": (WIDTH, WIDTH)}
        layers |= {block + "mlp.fc1": (4 * WIDTH, WIDTH), block + "mlp.fc2": (WIDTH, 4 * WIDTH)}
        for norm in ("norm1", "norm2"):
            state |= {f"{block}{norm}.weight": 1 + draw(WIDTH), f"{block}{norm}.bias": draw(WIDTH)}
    for name, shape in layers.items():
        state |= {f"{name}.weight": draw(*shape), f"{name}.bias": draw(shape[0])}
    return {**state, "norm.weight": 1 + draw(WIDTH), "norm.bias": draw(WIDTH)}
