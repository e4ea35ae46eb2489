"""The MAP head is timm's: SigLIP's weights give SigLIP's embeddings."""

import timm
import torch
from timm.layers import AttentionPoolLatent

from mmrep.pooling import Tokens, build_pool


def test_map_is_timms_attention_pool_with_the_same_weights() -> None:
    x = torch.randn(3, 9, 24, generator=torch.Generator().manual_seed(0))
    peer = AttentionPoolLatent(24, num_heads=4, norm_layer=torch.nn.LayerNorm)
    peer.norm.eps = 1e-6
    head = build_pool("map", dim=24, num_heads=4)
    head.attn_pool.load_state_dict(peer.state_dict())
    assert torch.equal(head(Tokens(x[:, :0], x, (3, 3))).embedding, peer(x))


def test_map_takes_a_siglip_vits_weights() -> None:
    vit = timm.create_model(
        "vit_base_patch16_siglip_224", num_classes=0, img_size=32, embed_dim=24, depth=1, num_heads=4
    ).eval()
    head = build_pool("map", dim=24, num_heads=4).eval()
    head.attn_pool.load_state_dict(vit.attn_pool.state_dict())
    with torch.no_grad():
        tokens = vit.forward_features(torch.randn(2, 3, 32, 32))
        pooled = head(Tokens(tokens[:, :0], tokens, (2, 2))).embedding
        torch.testing.assert_close(pooled, vit.forward_head(tokens, pre_logits=True))
