"""Train low-rank adapters beside the backbone's frozen weights: LoRA (Hu et al., ICLR 2022), by the library `peft`.

    y = W x + (alpha / rank) B A x,  A: (rank, in), random at first; B: (out, rank), zero at first, so nothing changes

Adapters are named as parameters of their layer. So a client of depth L_i trains and sends the adapters of layers 1..L_i
and its heads, and the server averages them by layer, by Eq. (1) or any other rule. As in FedIT (Zhang et al., ICASSP
2024), A and B are averaged separately, so the product of the means differs from the mean of the clients' products B A.
FFA-LoRA (Sun et al., ICLR 2024) trains B alone, where the two agree; we do not.
"""

import copy
import math
import operator

from fedexit.model.backbone import Backbone
from fedexit.support.errors import FedexitError
from fedexit.support.extras import extra
from fedexit.support.streams import seeded

# Linear layers that get adapters. The attention of `transformers`' WavLM reads the weights of its projections without
# calling them, so adapters would have no effect there.
TARGETS = {
    "hubert": ("q_proj", "v_proj"),
    "wav2vec2": ("q_proj", "v_proj"),
    "data2vec-audio": ("q_proj", "v_proj"),
    "wavlm": ("intermediate_dense", "output_dense"),
}


def with_lora(backbone: Backbone, rank: int = 8, alpha: float | None = None, seed: int = 0) -> Backbone:
    """Add adapters to every layer of `backbone` (in place), freeze the rest and return it.

    Adapters need a larger learning rate than full fine-tuning.

    Args:
        backbone: changed; its family decides which linear layers get adapters (`TARGETS`).
        rank: rows of A, at least 1.
        alpha: B A is scaled by alpha / rank; at least 1, default twice the rank.
        seed: draws A.

    Raises:
        FedexitError: without the library, for rank or alpha below 1, and for a backbone that has adapters already.
    """
    if not isinstance(backbone, Backbone):
        raise FedexitError(f"adapters go into a backbone, not a {type(backbone).__name__}; give one of load_backbone")
    if backbone.lora:
        raise FedexitError(f"{backbone.name} has adapters already; merge them first (see `merged`)")
    try:
        size = operator.index(rank)
        scale = 2 * size if alpha is None else float(alpha + 0)  # text has no sum
    except (TypeError, ValueError):
        size, scale = 0, 0.0
    if size < 1 or not 1 <= scale < math.inf:
        raise FedexitError(f"LoRA needs a whole rank >= 1 and alpha >= 1, not rank {rank!r}, alpha {alpha!r}")
    with extra("lora"):
        from peft import LoraConfig, inject_adapter_in_model
    model = backbone.model.requires_grad_(False)
    targets = list(TARGETS[model.config.model_type])
    with seeded(seed, "lora"):
        config = LoraConfig(r=size, lora_alpha=scale, target_modules=targets)  # type: ignore[arg-type]  # alpha may be a float
        inject_adapter_in_model(config, model)
    backbone.lora = size, scale
    model.train(model.training)  # the new parts as well
    return backbone


def merged(backbone: Backbone) -> Backbone:
    """Return a copy with each B A added to its weights: the same outputs, to float rounding, without adapters.

    The copy is an ordinary backbone whose layers all train. Raises FedexitError if there are no adapters.
    """
    if not backbone.lora:
        raise FedexitError(f"{backbone.name} has no adapters to merge; see with_lora")
    model = copy.deepcopy(backbone.model)
    for name, module in list(model.named_modules()):
        if hasattr(module, "lora_A"):
            module.merge()
            model.set_submodule(name, module.get_base_layer())
    del model.peft_config
    return Backbone(model.requires_grad_(True), backbone.name, backbone.pretrained)
