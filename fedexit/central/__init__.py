"""Train in one place. Start with `fine_tuning.fine_tune`; federations are compared with its models.

fine_tuning        supervised training of one exit or several on all clips
masked_prediction  the pre-training of the shipped backbone: `fedexit pretrain`
pretraining        its settings and checks
codes              its targets: k-means codes of every frame
speech_pool        its unlabelled speech
ctc_start          the start for speech recognition: `fedexit ctc`
model_card         the model cards of both
probes             linear probes of frozen layers
"""
