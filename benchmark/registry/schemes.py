"""The one table of schemes: forms of names beyond the registered ones, such as ``npz:PATH``, and who resolves them.

Which names are accepted, which factory is loaded for them, what a misspelt name is compared with and what ``advbench list``
shows are all read from `SCHEMES`. A resolver is named by its reference: nothing is imported before a name asks for it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["attacks", "defenses", "parts", "architectures", "datasets"]
KINDS: tuple[Kind, ...] = ("attacks", "defenses", "parts", "architectures", "datasets")

OWN = "own:"
"""What the names of the user's networks begin with; a target is the rest of such a name."""
HELD = f"{OWN}held:"
"""What the names of live networks of this process begin with, and of their images."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """A form of names.

    prefix, suffix: how such a name begins and ends. form: how it is written, for people. resolver: the ``module:function``
    that maps such a name to the component's factory. A factory's `identity`, a text, says what its results depend on beside
    advbench's sources: a file of the user's, the version of a library. description: what the name means, in a line.
    exact: whether the name is the prefix alone; `resolver` is then the factory itself. listed: whether people are shown it.
    """

    kind: Kind
    prefix: str
    form: str
    resolver: str
    description: str
    suffix: str = ""
    exact: bool = False
    listed: bool = True

    def matches(self, name: str) -> bool:
        """Whether the name has this form; something must stand between prefix and suffix."""
        if self.exact:
            return name == self.prefix
        return name.startswith(self.prefix) and name.endswith(self.suffix) and len(name) > len(self.prefix + self.suffix)


_LIBRARIES = "advbench.user_models.library_attacks:resolve"
_NETWORKS = "advbench.user_models.networks"
_HELD = "advbench.user_models.held"
_ONNX = "advbench.user_models.onnx_files:resolve"
_PROGRAMS = "advbench.user_models.program_files:resolve"
_LIBRARY_NETWORKS = "advbench.user_models.library_networks"
_TORCHVISION = "advbench.zoo.architectures.torchvision_models:resolve"
_KERAS = "A NumPy archive of yours by Keras' convention: x_train, y_train, x_test, y_test"
_FOLDER = "Images of yours, a folder for each class: train/CLASS/IMAGE, test/CLASS/IMAGE"
_BARE = "A network of torchvision without standardisation; NAME:WEIGHTS for torchvision's own weights"

# fmt: off
SCHEMES: tuple[Scheme, ...] = (
    Scheme("attacks", "foolbox/", "foolbox/NAME", _LIBRARIES, "An attack of foolbox, where installed"),
    Scheme("attacks", "torchattacks/", "torchattacks/NAME", _LIBRARIES, "An attack of torchattacks, where installed"),
    Scheme("attacks", "adv-lib/", "adv-lib/NAME", _LIBRARIES, "An attack of adv-lib, where installed"),
    Scheme("attacks", "images:", "images:FILE", "advbench.user_models.given_images:resolve",
           "Adversarial images that another tool has found, in a NumPy archive: x_adv, and index in the test split"),
    Scheme("defenses", "own", "own(weights='FILE')", "advbench.user_models.weights:Own",
           "A trained model of yours, of an architecture own:TARGET", exact=True),
    Scheme("architectures", "torchvision/", "torchvision/NAME", _TORCHVISION,
           "A classifier of torchvision, on standardised images with 3 channels"),
    Scheme("architectures", OWN, "own:file.py:factory", f"{_NETWORKS}:resolve", "A network that a function in a file makes"),
    Scheme("architectures", OWN, "own:package.module:factory", f"{_NETWORKS}:resolve",
           "A network that a function in an importable module makes"),
    Scheme("architectures", OWN, "own:file.onnx", _ONNX, "A network in an ONNX file", suffix=".onnx"),
    Scheme("architectures", OWN, "own:file.pt2", _PROGRAMS, "A program that torch.export has saved", suffix=".pt2"),
    Scheme("architectures", OWN, "own:file.ts", _PROGRAMS, "A program that TorchScript has saved", suffix=".ts"),
    Scheme("architectures", f"{OWN}timm/", "own:timm/NAME", f"{_LIBRARY_NETWORKS}:resolve_timm",
           "A network of timm, where installed; NAME:WEIGHTS for timm's own weights"),
    Scheme("architectures", f"{OWN}robustbench/", "own:robustbench/DATASET/THREAT/NAME",
           f"{_LIBRARY_NETWORKS}:resolve_robustbench",
           "A network of RobustBench, where installed, with its checkpoint under models/"),
    Scheme("architectures", f"{OWN}torchvision/", "own:torchvision/NAME", f"{_NETWORKS}:resolve_torchvision", _BARE),
    Scheme("architectures", HELD, "own:held:NAME", f"{_HELD}:resolve", "A live network", listed=False),
    Scheme("datasets", "npz:", "npz:PATH", "advbench.zoo.npz:resolve", _KERAS),
    Scheme("datasets", "folder:", "folder:PATH", "advbench.zoo.image_folder:resolve", _FOLDER),
    Scheme("datasets", "zca:", "zca:NAME", "advbench.registry.registry:resolve_whitened", "Another data set, whitened"),
    Scheme("datasets", HELD, "own:held:NAME", f"{_HELD}:resolve_data", "Live images", listed=False),
)
# fmt: on


def scheme_of(kind: Kind, name: str) -> Scheme | None:
    """The scheme of a name, the one with the longest prefix, then suffix, where several match; None if none does."""
    matching = [scheme for scheme in SCHEMES if scheme.kind == kind and scheme.matches(name)]
    return max(matching, key=lambda scheme: (len(scheme.prefix), len(scheme.suffix)), default=None)


def listed(kind: Kind) -> tuple[Scheme, ...]:
    """The schemes of a kind that people are shown, in the order of the table."""
    return tuple(scheme for scheme in SCHEMES if scheme.kind == kind and scheme.listed)


def targets() -> str:
    """How targets are written, for people: ``file.py:factory, package.module:factory, ... or torchvision/NAME``."""
    forms = [scheme.form.removeprefix(OWN) for scheme in listed("architectures") if scheme.form.startswith(OWN)]
    return f"{', '.join(forms[:-1])} or {forms[-1]}"


def close_names(kind: Kind, name: str, registered: Sequence[str]) -> list[str]:
    """Up to three names that a misspelt one may have meant: `registered` ones, else the same behind a scheme's prefix.

    A prefix with nothing behind it gives the forms that begin with it.
    """
    bare = [scheme.form for scheme in listed(kind) if name and name in (scheme.prefix, scheme.prefix.rstrip(":/"))]
    spelt = {each.lower(): each for each in registered}
    close = bare or [spelt[each] for each in difflib.get_close_matches(name.lower(), spelt, n=3, cutoff=0.5)]
    head = re.match(r"[^:/]+[:/](?=.)", name)
    if head is None or close:
        return close
    prefixes = [scheme.prefix for scheme in listed(kind) if not scheme.exact]
    return [prefix + name[head.end() :] for prefix in difflib.get_close_matches(head[0], prefixes, n=1, cutoff=0.75)]
