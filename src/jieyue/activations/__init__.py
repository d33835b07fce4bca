"""GELU and its relatives: exact and approximate forms, and the tool that finds an approximation's constants.

``gelu(x, approximate)`` and the modules ``Gelu``, ``Activation`` compute; ``fit`` and ``given`` find and measure
constants, each with a certified bound of the error. The names of ``FORMS``, ``TARGETS`` and ``NAMED`` are what text (a
configuration, the command line) may say.
"""

from .certificate import Certificate, certify
from .criteria import CRITERIA, Weight, gaussian, histogram
from .fitting import Fit, fit, given
from .forms import FORMS, NAMED, TARGETS, Approximation, Form, Target
from .operator import Activation, Gelu, apply, gelu, variant

__all__ = [
    "CRITERIA",
    "FORMS",
    "NAMED",
    "TARGETS",
    "Activation",
    "Approximation",
    "Certificate",
    "Fit",
    "Form",
    "Gelu",
    "Target",
    "Weight",
    "apply",
    "certify",
    "fit",
    "gaussian",
    "gelu",
    "given",
    "histogram",
    "variant",
]
