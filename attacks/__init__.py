"""Attacks: threat models, access, and one file per attack family.

`ATTACKS` maps a name to an entry-point reference (``module:factory``), the form that plug-ins use too, so that importing
this package imports no attack.
"""

ATTACKS: dict[str, str] = {
    "uniform-noise": "advbench.attacks.noise:UniformNoise",
    "fgm": "advbench.attacks.fgm:FGM",
    "fgsm": "advbench.attacks.fgm:FGSM",
    "pgd": "advbench.attacks.pgd:PGD",
    "deepfool": "advbench.attacks.deepfool:DeepFool",
}
