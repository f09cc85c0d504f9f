"""ViTs under timm's names, in which the authors of MAE too publish theirs, and transformers' ViTModel."""


def vit_parameters(vit):
    """timm's keys -> the parameters of a ViTModel, without its pooler, whose rows the tensor holds one after the other."""
    embeddings = vit.embeddings
    modules = {"patch_embed.proj": [embeddings.patch_embeddings.projection], "norm": [vit.layernorm]}
    tokens = {"cls_token": [embeddings.cls_token], "pos_embed": [embeddings.position_embeddings]}
    return tokens | weights_and_biases(modules | vit_blocks("blocks", vit.layers))


def vit_blocks(stack, layers):
    """The names of the modules of transformer blocks -> their counterparts. A fused `qkv` holds the rows of query, key and
    value in this order."""
    modules = {}
    for i, layer in enumerate(layers):
        attention = layer.attention
        block = {
            "norm1": [layer.layernorm_before],
            "attn.qkv": [attention.q_proj, attention.k_proj, attention.v_proj],
            "attn.proj": [attention.o_proj],
            "norm2": [layer.layernorm_after],
            "mlp.fc1": [layer.mlp.fc1],
            "mlp.fc2": [layer.mlp.fc2],
        }
        modules |= {f"{stack}.{i}.{name}": parts for name, parts in block.items()}
    return modules


def weights_and_biases(modules):
    """Those of modules by name; of modules without bias only the weights."""
    return {
        f"{name}.{kind}": [getattr(part, kind) for part in parts]
        for name, parts in modules.items()
        for kind in ("weight", "bias")
        if getattr(parts[0], kind) is not None
    }
