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

TOLERANCE = {
    "cpu float32": {"generated": 1.0, "one_step": 1.0},
    "other": {"generated": 100.0, "one_step": 1000.0},
}
"""Largest SSE over 256x256x3 between a recorded picture and the same made again, by the device and precision of both;
``other`` where these are two.

Measured with the demo's model on a CPU in float32 against pictures of a run that sampled 32 together: other processes, with
one thread or two, that sampled one or 20 together came within 0.004, single values one 8-bit level apart. 1 is what a third
of all values off by one level makes. In bfloat16, of the calibration half, 24 pictures came within 10.4 in full, and 150
within 532 after one step, which multiplies what is rounded by the largest noise level; unlike captions at one seed are
20,000 and more apart then. GPUs were not measured. A copy is told from other pictures by distances of thousands.
"""
MOST_STEPS = 500


LARGEST_SEED = 2**63 - 1
MOST_GUIDANCE = 1000.0


def kind_of(device: str, dtype: str) -> str:
    """A kind of device, such as ``cpu`` of ``cuda:1``, and a precision, as `TOLERANCE` names them."""
    return f"{device.partition(':')[0]} {dtype}"


def tolerance(recorded: str, present: str) -> dict[str, float]:
    """What holds between what was made on one kind of device and on another (`kind_of`), for each picture."""
    return TOLERANCE.get(present if recorded == present else "other", TOLERANCE["other"])


def check_target(facts: Mapping[str, Any], target: Target) -> None:
    """InputError if the model is not the exhibit's, or draws its noise otherwise."""
    model = facts["model"]
    if target.sha256 != model["sha256"]:
        raise InputError(
            f"The exhibit is of the model {model['name']} ({str(model['sha256'])[:12]}), not of {target.name} "
            f"({target.sha256[:12]}); load that one with --model."
        )
    if target.noise_source != model["noise"]:
        raise InputError(f"The exhibit's noise was drawn on {model['noise']}; give --noise {model['noise']}.")


def check_asked(facts: Mapping[str, Any]) -> None:
    """InputError if what the exhibit says of its making could not have been asked for."""
    sampling = facts["sampling"]
    for name, value, most in (
        ("seed", sampling["seed_shown"], LARGEST_SEED),
        ("steps", sampling["steps"], MOST_STEPS),
    ):
        least = int(name == "steps")
        if type(value) is not int or not least <= value <= most:
            raise InputError(
                f"The exhibit states {value!r:.40} as its {name}; {least} to {most:,} can be made."
            )
    for value in (sampling["guidance"], facts["model"]["guidance"]):
        if type(value) not in (int, float) or not 0 <= value <= MOST_GUIDANCE:
            raise InputError(
                f"The exhibit states {value!r:.40} as its guidance; at most {MOST_GUIDANCE:g} is taken."
            )


def regenerate(facts: Mapping[str, Any], pictures: Mapping[str, bytes], target: Target) -> dict[str, Any]:
    """Generate the caption of an exhibit again, in full and by one step.

    Parameters
    ----------
    pictures
        ``generated`` and ``one_step`` as PNG.

    Returns
    -------
    The distances to those recorded, the tolerances, and whether both lie within theirs.

    Raises
    ------
    InputError
        If the exhibit asks for what cannot be made (`check_asked`), or the model does not make it of that.
    """
    from audit.runs.one_caption import decode, generate
    from audit.targets.one_step import one_step

    check_asked(facts)
    model, sampling = facts["model"], facts["sampling"]
    caption, seed = facts["caption"]["text"], sampling["seed_shown"]
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
    most = tolerance(kind_of(model["device"], model["dtype"]), kind_of(str(target.device), dtype))
    return {
        "device": str(target.device),
        "dtype": dtype,
        "recorded_on": f"{model['device']} {model['dtype']}",
        "distance": distances["generated"],
        "distance_of_one_step": distances["one_step"],
        "tolerance": most["generated"],
        "tolerance_of_one_step": most["one_step"],
        "within": all(distances[name] <= most[name] for name in distances),
    }
