"""Define the model. Start with `backbone.load_backbone`, then `exits.MultiExitModel`.

backbone    the speech encoder, cut at depth k; `pretrained` reads its weights from files
exits       the backbone with a prediction head on each exit; `heads` and `ctc` are the heads and losses
features    output of the frozen convolutions, stored once per clip
lora        adapters in place of all weights
early_exit  inference that stops at a confident exit
answers     the label or text of recordings, with its confidence
metrics     predictions and error rates of every exit
costs       parameters, bytes, multiply-accumulates and memory by depth
names, training   layers in parameter names; parts of every training loop
"""
