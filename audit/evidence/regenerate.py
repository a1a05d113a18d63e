"""An exhibit's pictures made again from their seed, and how far the new ones are from those recorded.

The same seed gives the same noise everywhere (it is drawn on the CPU by default), but sums are made in another order on
another machine, with other threads or in another batch. `TOLERANCE` states how far that may lead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from audit.errors import InputError
from audit.evidence.pixels import compared, distance
from audit.evidence.untrusted import read_picture
from audit.images import from_pil, to_pil

if TYPE_CHECKING:
    from audit.targets.base import Target

TOLERANCE = {"cpu float32": 1.0, "other": 100.0}
"""Largest SSE over 256x256x3 between a recorded picture and the same made again, by device and precision.

Measured with the demo's model on a CPU in float32 against pictures of a run that sampled 32 together: other processes, with
one thread or two, that sampled one or 20 together came within 0.002, single values one 8-bit level apart. 1 is what a third
of all values off by one level makes. In bfloat16 they came within 41 (one step; in full 4.2); 100 lets values be six levels
off on average. GPUs were not measured. A copy is told from other pictures by distances of thousands.
"""
MOST_STEPS = 500


def tolerance(device: str, dtype: str) -> float:
    """What holds for a kind of device, such as ``cpu`` of ``cuda:1``, and a precision."""
    return TOLERANCE.get(f"{device.partition(':')[0]} {dtype}", TOLERANCE["other"])


def regenerate(facts: Mapping[str, Any], pictures: Mapping[str, bytes], target: Target) -> dict[str, Any]:
    """Generate the caption of an exhibit again, in full and by one step.

    Parameters
    ----------
    pictures
        ``generated`` and ``one_step`` as PNG.

    Returns
    -------
    The distances to those recorded, the tolerance, and whether both lie within it.

    Raises
    ------
    InputError
        If the model is not the exhibit's, or draws its noise otherwise.
    """
    from audit.runs.one_caption import decode, generate
    from audit.targets.one_step import one_step

    model, sampling = facts["model"], facts["sampling"]
    if target.sha256 != model["sha256"]:
        raise InputError(
            f"The exhibit is of the model {model['name']} ({model['sha256'][:12]}), not of {target.name} "
            f"({target.sha256[:12]}); load that one with --model."
        )
    if target.noise_source != model["noise"]:
        raise InputError(f"The exhibit's noise was drawn on {model['noise']}; give --noise {model['noise']}.")
    caption, seed = facts["caption"]["text"], sampling["seed_shown"]
    if sampling["steps"] > MOST_STEPS:
        raise InputError(f"The exhibit asks for {sampling['steps']:,} steps; {MOST_STEPS} are made at most.")
    [[sample]] = generate(target, [caption], [seed], sampling["steps"], sampling["guidance"])
    step = one_step(target, target.encode([caption]), [seed], model["guidance"])
    dtype = str(target.dtype).removeprefix("torch.")
    found = {
        "generated": sample.image,
        "one_step": decode(target, step.denoised)[0],
    }
    distances = {
        name: distance(
            compared(from_pil(to_pil(image))), compared(read_picture(pictures[name], f"the picture {name}"))
        )
        for name, image in found.items()
    }
    most = tolerance(str(target.device), dtype)
    return {
        "device": str(target.device),
        "dtype": dtype,
        "recorded_on": f"{model['device']} {model['dtype']}",
        "distance": distances["generated"],
        "distance_of_one_step": distances["one_step"],
        "tolerance": most,
        "within": max(distances.values()) <= most,
    }
