"""Attacks: threat models, access, and one file per attack family.

`ATTACKS` maps a name to an entry-point reference (``module:factory``), the form that plug-ins use too, so that importing
this package imports no attack.
"""

ATTACKS: dict[str, str] = {
    "uniform-noise": "advbench.attacks.noise:UniformNoise",
    "correlated-noise": "advbench.attacks.correlated_noise:CorrelatedNoise",
    "estimated-noise": "advbench.attacks.estimated_noise:EstimatedNoise",
    "fgm": "advbench.attacks.fgm:FGM",
    "fgsm": "advbench.attacks.fgm:FGSM",
    "r-fgsm": "advbench.attacks.rfgsm:RFGSM",
    "pgd": "advbench.attacks.pgd:PGD",
    "selective-pgd": "advbench.attacks.selective_pgd:SelectivePGD",
    "mi-fgsm": "advbench.attacks.momentum:MIFGSM",
    "di-fgsm": "advbench.attacks.diverse:DIFGSM",
    "ti-fgsm": "advbench.attacks.translation:TIFGSM",
    "deepfool": "advbench.attacks.deepfool:DeepFool",
    "apgd-ce": "advbench.attacks.apgd:APGD",
    "apgd-dlr": "advbench.attacks.apgd:APGDDLR",
    "apgd-t": "advbench.attacks.apgd:APGDT",
    "fab": "advbench.attacks.fab:FAB",
    "fab-t": "advbench.attacks.fab:FABT",
    "square": "advbench.attacks.square:Square",
    "auto": "advbench.attacks.auto:Auto",
    "autoattack": "advbench.attacks.autoattack:AutoAttack",
    "autoattack-rand": "advbench.attacks.autoattack:AutoAttackRand",
    "ddn": "advbench.attacks.ddn:DDN",
    "fmn": "advbench.attacks.fmn:FMN",
    "carlini-wagner": "advbench.attacks.carlini_wagner:CarliniWagner",
    "lbfgs": "advbench.attacks.lbfgs:LBFGS",
    "hop-skip-jump": "advbench.attacks.hop_skip_jump:HopSkipJump",
    "worst-case": "advbench.attacks.ensemble:WorstCase",
}
