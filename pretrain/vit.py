"""What the methods' vision transformers share: blocks, their random start, choosing tokens.

Axes: B batch, N patches, V visible patches, D width.
"""

import contextlib
import functools
from collections.abc import Callable

from timm.layers import Mlp
from timm.models.vision_transformer import Attention, Block, PatchEmbed
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from evaluate.runtime.errors import UserError
from pretrain.attention import attend
from pretrain.norm import is_repeatable, uncounted

LAYER_NORM = functools.partial(nn.LayerNorm, eps=1e-6)


class ChosenAttention(Attention):
    """timm's self-attention without mask, whose kernel is chosen by shape, type and device alone."""

    def forward(self, x: Tensor, norm: nn.Module | None = None) -> Tensor:  # type: ignore[override]  # timm's masks
        """Of tokens (B, N, D), after the norm if there is one, to the same."""
        parts = after(norm, self.qkv, x).unflatten(2, (3, self.num_heads, self.head_dim))
        return self.proj(attend(parts))


class RecomputedMlp(Mlp):
    """timm's MLP, whose GELU is computed again in the backward pass: a quarter of what a block would keep is its
    result."""

    def forward(self, x: Tensor, norm: nn.Module | None = None) -> Tensor:
        """Of tokens (B, N, D), after the norm if there is one, to the same."""
        # The checkpoint stops as soon as it has what the backward pass asks for, before the second layer's product.
        return checkpoint(self._second_half, after(norm, self.fc1, x), use_reentrant=False, preserve_rng_state=False)

    def _second_half(self, hidden: Tensor) -> Tensor:
        return self.fc2(self.act(hidden))


def after(norm: nn.Module | None, layer: nn.Module, tokens: Tensor) -> Tensor:
    """layer(norm(tokens)). A CPU computes the norm again in the backward pass: what it gives is as large as its input,
    which is kept."""
    if norm is None:
        return layer(tokens)
    if tokens.device.type != "cpu" or not is_repeatable(norm):
        return layer(norm(tokens))
    both = nn.Sequential(norm, layer)
    if isinstance(norm, nn.LayerNorm):
        return checkpoint(both, tokens, use_reentrant=False, preserve_rng_state=False)
    contexts = lambda: (contextlib.nullcontext(), uncounted(norm))  # noqa: E731
    return checkpoint(both, tokens, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)


class CheckpointedBlock(Block):
    """timm's block, which can keep a third (a CPU, two fifths): with ``grad_checkpointing`` what is inside attention
    and MLP is computed again.

    Their last layers are not (the checkpoint stops before), and the norms are not: BatchNorm must count a batch once.
    """

    grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # nn.Sequential gives it tokens alone, no mask
        x = x + self.drop_path1(self._part(self.attn, self.norm1, x))
        return x + self.drop_path2(self._part(self.mlp, self.norm2, x))

    def _part(self, part: nn.Module, norm: nn.Module, tokens: Tensor) -> Tensor:
        if self.grad_checkpointing:
            return checkpoint(part, norm(tokens), use_reentrant=False, preserve_rng_state=False)
        return part(tokens, norm)


def set_grad_checkpointing(model: nn.Module) -> None:
    """Lets all blocks of a model take less memory and more time: the same numbers. Raises UserError if it has none.

    Blocks of our own, and open_clip's stacks of blocks, which have a switch of the same name.
    """
    found = [module for module in model.modules() if hasattr(module, "grad_checkpointing")]
    if not found:
        raise UserError("--grad-checkpointing is for transformers, and this encoder is none; leave it out")
    for module in found:
        module.grad_checkpointing = True  # type: ignore[assignment]  # no tensor, though it is a module's


def blocks(
    depth: int,
    width: int,
    num_heads: int,
    mlp_ratio: float,
    norm: Callable[[int], nn.Module] = LAYER_NORM,
    drop_path_rate: float = 0.0,
) -> nn.Sequential:
    """timm's pre-norm transformer blocks; the drop path rate rises linearly to ``drop_path_rate``."""
    rates = [drop_path_rate * i / max(depth - 1, 1) for i in range(depth)]
    return nn.Sequential(
        *(
            CheckpointedBlock(
                width,
                num_heads,
                mlp_ratio,
                qkv_bias=True,
                drop_path=rate,
                norm_layer=norm,  # type: ignore[arg-type]  # timm types it as a class, and calls it
                attn_layer=ChosenAttention,
                mlp_layer=RecomputedMlp,
            )
            for rate in rates
        )
    )


def initialize(model: nn.Module, patch_embed: PatchEmbed, *tokens: nn.Parameter) -> None:
    """MAE's random start: Xavier for linear layers and the patch embedding (as one), normal (0.02) tokens, biases 0."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    convolution = patch_embed.proj
    nn.init.xavier_uniform_(convolution.weight.view(len(convolution.weight), -1))
    for token in tokens:
        nn.init.normal_(token, std=0.02)


def gather_tokens(tokens: Tensor, cells: Tensor) -> Tensor:
    """Tokens (B, N, D) at the cells (B, V): (B, V, D)."""
    return tokens.gather(1, cells[..., None].expand(-1, -1, tokens.shape[-1]))
