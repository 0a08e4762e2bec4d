"""Defenses: training-time objectives, test-time purifiers, and their kernels.

`DEFENSES` maps a name to an entry-point reference (``module:factory``), the form that plug-ins use too. `PARTS` does
the same for the parts of defenses, which are not attacked alone: denoisers, generators, detectors.
"""

_TRAINING = "advbench.defenses.training"
_INFERENCE = "advbench.defenses.inference"

DEFENSES: dict[str, str] = {
    "none": f"{_TRAINING}.plain:Plain",
    "weight-decay": f"{_TRAINING}.weight_decay:WeightDecay",
    "deep-contractive": f"{_TRAINING}.deep_contractive:DeepContractive",
    "gaussian-noise": f"{_TRAINING}.gaussian_noise:GaussianNoise",
    "sparse-pretraining": f"{_TRAINING}.pretrained:SparsePretraining",
    "contractive-pretraining": f"{_TRAINING}.pretrained:ContractivePretraining",
    "robust-linf": f"{_TRAINING}.robust_optimisation:RobustLinf",
    "robust-l2": f"{_TRAINING}.robust_optimisation:RobustL2",
    "robust-l1": f"{_TRAINING}.robust_optimisation:RobustL1",
    "robust-tangent": f"{_TRAINING}.tangent:RobustTangent",
    "mixed-linf": f"{_TRAINING}.robust_optimisation:MixedLinf",
    "fast-at": f"{_TRAINING}.robust_optimisation:FastAT",
    "trades": f"{_TRAINING}.trades:TradesLinf",
    "trades-l2": f"{_TRAINING}.trades:TradesL2",
    "smooth-gradient": f"{_TRAINING}.smooth_gradient:SmoothGradient",
    "pgd-linf": f"{_TRAINING}.pgd:PGDLinf",
    "pgd-l2": f"{_TRAINING}.pgd:PGDL2",
    "pgd-l1": f"{_TRAINING}.pgd:PGDL1",
    "gradient-norm": f"{_TRAINING}.gradient_norm:GradientNorm",
    "sgr": f"{_TRAINING}.structured_gradient:SGR",
    "sgr-fgsm": f"{_TRAINING}.structured_gradient:SGRFGSM",
    "sgr-pgd": f"{_TRAINING}.structured_gradient:SGRPGD",
    "sgr-correlated": f"{_TRAINING}.structured_gradient:SGRCorrelated",
    "sgr-data": f"{_TRAINING}.structured_gradient:SGRData",
    "fgsm-augmented": f"{_TRAINING}.augmented:FGSMAugmented",
    "pgd-augmented": f"{_TRAINING}.augmented:PGDAugmented",
    "lrc-augmented": f"{_TRAINING}.augmented:CorrelatedAugmented",
    "input-noise": f"{_INFERENCE}.noise:InputNoise",
    "gaussian-blur": f"{_INFERENCE}.blur:GaussianBlur",
    "layer-noise": f"{_INFERENCE}.layer_noise:LayerNoise",
    "vote": f"{_INFERENCE}.vote:Vote",
    "autoencoder": f"{_INFERENCE}.autoencoder:Autoencoder",
    "denoising-autoencoder": f"{_INFERENCE}.autoencoder:DenoisingAutoencoder",
    "bit-depth": f"{_INFERENCE}.bit_depth:BitDepth",
    "median-smoothing": f"{_INFERENCE}.median:MedianSmoothing",
    "non-local-means": f"{_INFERENCE}.non_local_means:NonLocalMeans",
    "jpeg": f"{_INFERENCE}.jpeg:JPEG",
    "total-variation": f"{_INFERENCE}.total_variation:TotalVariation",
    "feature-squeezing": f"{_INFERENCE}.feature_squeezing:FeatureSqueezing",
    "mala": f"{_INFERENCE}.malade:MALA",
    "malade": f"{_INFERENCE}.malade:MALADE",
    "magnet": f"{_INFERENCE}.magnet:MagNet",
    "defense-gan": f"{_INFERENCE}.defense_gan:DefenseGAN",
}

PARTS: dict[str, str] = {
    "dense-dae": f"{_INFERENCE}.autoencoder:DenseDAE",
    "adversarial-autoencoder": f"{_INFERENCE}.autoencoder:AdversarialAutoencoder",
    "dae": f"{_INFERENCE}.denoiser:DAE",
    "dae-pool": f"{_INFERENCE}.autoencoder_pool:DAEPool",
    "sdae": f"{_INFERENCE}.denoiser:SDAE",
    "generator": f"{_INFERENCE}.generator:ImageGenerator",
}
