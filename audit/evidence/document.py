"""What an exhibit's report says: a function of ``exhibit.json`` alone, laid out by `report` and by `html`.

Everything from outside (captions, authors, names) stands in it as plain text; no layout reads it as anything else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from audit.evidence.facts import (
    DIFFERENCE,
    FPR,
    GENERATED,
    MASK,
    MASKED_DIFFERENCE,
    NEIGHBOURS,
    ONE_STEP,
    PIECES,
    TEMPLATE,
    TRAINING,
    VERIFYING,
)
from audit.evidence.people import CONFIRMED, DISPUTED, NOBODY, Compared, Label
from audit.evidence.regenerate import kind_of
from audit.evidence.words import Words, amount, share, words
from audit.records import VerdictKind

Facts = Mapping[str, Any]
LONGEST = 280
"""Characters of a caption on the first page; the record has all of it."""
LONGEST_CELL = 160
NEAR_LIMIT = 0.8
"""Share of its limit from which on a distance is called near it on the first page."""
QUESTIONS = (
    "asked",
    "back",
    "match",
    "verified",
    "confirmed",
    "not_claimed",
    "chance",
    "tried",
    "original",
    "check",
)
"""What a reader asks, in order; each is answered on the first two pages."""


def document(facts: Facts) -> dict[str, Any]:
    """The whole report: texts, tables, and the names of pictures."""
    say = words(facts["language"])
    kind = facts["verdict"]["kind"]
    title = say.of_kind("title", kind, kind=kind)
    return {
        "language": facts["language"],
        "title": say("document", id=facts["caption"]["id"], title=title),
        "heading": title,
        "subtitle": say(
            "subtitle", id=facts["caption"]["id"], model=facts["model"]["name"], version=facts["verbatim"]
        ),
        "page": say("page"),
        "of": say("of"),
        "weak": weak(facts, say),
        "claims_title": say("claims.title"),
        "claims": claims(facts, say),
        "plain_title": say("plain.title"),
        "pair": pair(facts, say),
        "answers": [
            {"key": name, "question": say(f"question.{name}"), "sentences": answers}
            for name, answers in ((name, ANSWERS[name](facts, say)) for name in QUESTIONS)
        ],
        "method": method(facts, say),
        "figures_title": say("figures.title"),
        "figures": figures(facts, say),
        "record_title": say("record.title"),
        "record": record(facts, say),
        "words": {"title": say("words.title"), "items": glossary(say)},
    }


def claims(facts: Facts, say: Words) -> list[dict[str, str]]:
    """The three claims with what became of each."""
    outcome = facts["agreement"]["outcome"]
    states = {name: "yes" if holds else "no" for name, holds in facts["claims"].items()}
    if not facts["claims"]["confirmed"]:
        states["confirmed"] = {DISPUTED: "disputed", "rejected": "no", CONFIRMED: "no"}.get(outcome, "open")
    return [
        {
            "name": say(f"claims.{name}"),
            "meaning": say(f"claims.{name}.meaning"),
            "state": say(f"state.{states[name]}"),
            "mark": states[name],
        }
        for name in ("retrieved", "verified", "confirmed")
    ]


def weak(facts: Facts, say: Words) -> list[str]:
    """What a reader has to know first of a verdict that barely holds; empty for others."""
    if not facts["claims"]["verified"]:
        return []
    found, sentences = facts["chance"], []
    if found["share_of_limit"] is not None and found["share_of_limit"] >= NEAR_LIMIT:
        sentences.append(say("weak.limit", share=share(found["share_of_limit"])))
    score = found["score"]
    if score is not None and score["rate_at_most"] > FPR:
        as_high, ordinary = f"{score['as_high']:,}", say.count("ordinary", score["ordinary_captions"])
        sentences.append(say("weak.score", as_high=as_high, ordinary=ordinary))
    if sentences and facts["agreement"]["outcome"] == NOBODY:
        sentences.append(say("weak.person"))
    return [say("weak.title"), *sentences] if sentences else []


def glossary(say: Words) -> list[str]:
    """The words that a reader may not know, each with what it means."""
    return [text for key, text in say.texts.items() if key.startswith("word.")]


def pair(facts: Facts, say: Words) -> dict[str, Any]:
    """The two pictures that stand side by side on the first page."""
    seed, training = facts["sampling"]["seed_shown"], facts["training_image"]
    left = {
        "file": GENERATED,
        "caption": say("pair.left", seed=seed),
        "alt": say("pair.left.alt", caption=cut(facts["caption"]["text"], LONGEST_CELL), seed=seed),
    }
    if training is None:
        return {"left": left, "right": {"file": None, "caption": say("pair.none"), "alt": ""}}
    name = training["image_id"]
    if TRAINING not in facts["pictures"]:
        text = say(
            "pair.absent",
            image_id=name,
            why=say(f"why.{training['not_copied_because']}"),
            sha256=training["sha256"] or say("unknown"),
            source=training["source"] or training["url"] or say("unknown"),
        )
        return {"left": left, "right": {"file": None, "caption": text, "alt": ""}}
    copy = facts["verdict"]["kind"] in VERIFYING
    which = "pair.right" if copy else "pair.right.nearest"
    right = {
        "file": TRAINING,
        "caption": say(which if training["trained"] else "pair.right.kept_out", image_id=name),
        "alt": say("pair.right.alt", image_id=name, caption=cut(training["caption"], LONGEST_CELL)),
    }
    return {"left": left, "right": right}


def asked(facts: Facts, say: Words) -> list[str]:
    seeds = facts["sampling"]["seeds"]
    sentences = [say("asked", model=facts["model"]["name"], caption=cut(facts["caption"]["text"], LONGEST))]
    if facts["caption"]["truncated"]:
        sentences.append(say("asked.truncated"))
    times = say.count("time", len(seeds))
    return [*sentences, say("asked.seeds", times=times, seed=facts["sampling"]["seed_shown"])]


def back(facts: Facts, say: Words) -> list[str]:
    return [say("back")]


def match(facts: Facts, say: Words) -> list[str]:
    kind, training, template = facts["verdict"]["kind"], facts["training_image"], facts["template"]
    sentence = say.of_kind(
        "match",
        kind,
        image_id=training["image_id"] if training else say("unknown"),
        training_caption=cut(training["caption"], LONGEST) if training else "",
        members=say.count("image", len(template["members"]) if template else 0),
        varies=share(1 - template["coverage"]) if template else "",
        reason=facts["verdict"]["reason"],
    )
    return [sentence] if training is None or training["trained"] else [sentence, say("match.unseen")]


def verified(facts: Facts, say: Words) -> list[str]:
    kind = facts["verdict"]["kind"]
    check = deciding(facts)
    if check is not None and check["score"] is not None:
        numbers = {name: amount(check[name]) for name in ("score", "threshold")}
        return [say("verified.PV", **numbers)]
    if check is not None:
        template = facts["template"]
        return [
            say(
                "verified.mask" if kind == VerdictKind.TV else "verified.pixels",
                distance=amount(check["distance"]),
                limit=amount(check["limit"]),
                blank=amount(check["blank"]),
                coverage=share(template["coverage"]) if template else "",
            ),
            say("verified.rule", threshold=amount(check["threshold"])),
        ]
    if kind == VerdictKind.N:
        near = nearest_check(facts)
        if near is None:
            return [say("verified.N.none")]
        return [say("verified.N", distance=amount(near["distance"]), limit=amount(near["limit"]))]
    if kind == VerdictKind.U:
        missing = ", ".join(
            f"{check_name(check['kind'], say)}: {status(check['status'], say)}"
            for check in facts["checks"]
            if check["status"] != "checked"
        )
        return [say("verified.U", missing=missing)]
    return [say("verified.other")]


def chance(facts: Facts, say: Words) -> list[str]:
    kind, found = facts["verdict"]["kind"], facts["chance"]
    if kind in (VerdictKind.N, VerdictKind.U):
        return [say("chance.none")]
    score = found["score"]
    if score is None:
        first_step = say("chance.no_score")
    else:
        first_step = say(
            "chance.score",
            rate=share(score["rate_at_most"]),
            ordinary=say.count("ordinary", score["ordinary_captions"]),
            as_high=f"{score['as_high']:,}" if score["as_high"] else say("nothing"),
            scored=f"{facts['denominators']['captions_scored']:,}",
            expected=f"{score['expected_among_scored']:.2g}",
        )
    check = deciding(facts)
    if check is not None and check["score"] is not None:
        numbers = {name: amount(check[name]) for name in ("score", "threshold")}
        return [say("chance.pieces", rate=share(found["pieces_rate"]), **numbers), first_step]
    if found["share_of_limit"] is None:
        return [say("chance.other"), first_step]
    nearest = found["nearest_that_is_no_copy"]
    key = "chance.distance.nearest.mask" if kind == VerdictKind.TV else "chance.distance.nearest"
    distance = say(
        "chance.distance" if nearest is None else key,
        share=share(found["share_of_limit"]),
        other=amount(nearest),
    )
    return [distance, first_step]


def confirmed(facts: Facts, say: Words) -> list[str]:
    found = facts["agreement"]
    if found["outcome"] == NOBODY:
        return [say("confirmed.nobody"), *not_counted(facts, say)]
    counted = [label for label in (Label(**each) for each in facts["labels"]) if label.counts]
    said = [label for label in counted if not label.adjudicated] or counted
    if found["outcome"] == CONFIRMED:  # an adjudicator may have decided against some of them
        said = [*filter(Compared.of(facts["verdict"], facts["training_image"]).agrees, counted)]
    who = ", ".join(dict.fromkeys(label.who for label in said))
    labels = ", ".join(dict.fromkeys(label.label for label in said))
    # where no copy is claimed, people who agree with the verdict confirm none
    key = f"confirmed.{found['outcome']}"
    if not facts["claims"]["verified"] and f"{key}.no_copy" in say:
        key += ".no_copy"
    sentences = [say(key, who=who, labels=labels, needed=found["needed"])]
    if found["adjudicated_by"]:
        sentences.append(say("confirmed.adjudicated", adjudicator=found["adjudicated_by"]))
    for name in ("of_another_picture", "imported"):
        if found[name]:
            sentences.append(say(f"confirmed.{name}", answers=say.count("answer", found[name])))
    return [*sentences, *not_counted(facts, say)]


def not_counted(facts: Facts, say: Words) -> list[str]:
    """How many answers count for nothing, and why."""
    return [
        say(f"confirmed.{reason}", answers=say.count("answer", number))
        for reason, number in facts["agreement"]["not_counted"].items()
        if number
    ]


def not_claimed(facts: Facts, say: Words) -> list[str]:
    return [say("not_claimed"), say("not_claimed.nearest")]


def tried(facts: Facts, say: Words) -> list[str]:
    counts = facts["denominators"]
    verdicts = ", ".join(
        say.of_kind("tried.verdict", kind, count=f"{number:,}", kind=kind)
        for kind, number in counts["verdicts"].items()
    )
    return [
        say(
            "tried",
            scored=say.count("caption", counts["captions_scored"]),
            decided=f"{counts['captions_decided']:,}",
            seeds=say.count("seed", counts["seeds_generated"]),
            verdicts=verdicts,
        ),
        say(
            "tried.this",
            comparisons=say.count("comparison", counts["comparisons_for_this_caption"]),
            retrieved=f"{counts['retrieved_per_picture']:,}",
            images=say.count("image", counts["training_images"]),
        ),
    ]


def original(facts: Facts, say: Words) -> list[str]:
    training = facts["training_image"]
    if training is None:
        return [say("original.none")]
    told = {
        "author": training["author"],
        "title": f"“{cut(training['title'], LONGEST_CELL)}”"
        if training["title"]
        else say("original.untitled", image_id=training["image_id"]),
        "licence": training["licence"] or say("unknown"),
        "source": training["source"] or training["url"] or say("unknown"),
    }
    return [say("original" if training["author"] else "original.no_author", **told)]


def check(facts: Facts, say: Words) -> list[str]:
    return [say("check.verify", command=facts["again"]["check"]), say("check.register"), say("check.sums")]


ANSWERS = {
    "asked": asked,
    "back": back,
    "match": match,
    "verified": verified,
    "chance": chance,
    "confirmed": confirmed,
    "not_claimed": not_claimed,
    "tried": tried,
    "original": original,
    "check": check,
}


def deciding(facts: Facts) -> Facts | None:
    """The check that the verdict rests on; None where none holds."""
    kind = facts["verdict"]["kind"]
    return next((each for each in facts["checks"] if each["kind"] == kind and each["holds"]), None)


def nearest_check(facts: Facts) -> Facts | None:
    """The check of whole pictures with the smallest distance."""
    whole = [
        each for each in facts["checks"] if each["distance"] is not None and each["kind"] != VerdictKind.TV
    ]
    return min(whole, key=lambda each: each["distance"], default=None)


def method(facts: Facts, say: Words) -> dict[str, Any]:
    """How it was done, on one page, with its limits and the ways in which it fails."""
    counts = facts["denominators"]
    thresholds = {check["kind"]: check["threshold"] for check in facts["checks"]}
    steps = [
        say("method.step.score"),
        say(
            "method.step.sample",
            seeds=say.count("picture", counts["seeds_generated"]),
            steps=say.count("step", facts["sampling"]["steps"]),
        ),
        say(
            "method.step.retrieve",
            images=say.count("image", counts["training_images"]),
            retrieved=f"{counts['retrieved_per_picture']:,}",
        ),
        say("method.step.compare"),
        say(
            "method.step.decide",
            matching=amount(thresholds.get("MV")),
            retrieved_limit=amount(thresholds.get("RV")),
            template=amount(thresholds.get("TV")),
        ),
        say("method.step.template"),
        say("method.step.people"),
    ]
    return {
        "title": say("method.title"),
        "intro": say("method.intro"),
        "lists": [
            {"title": say("method.steps.title"), "items": steps},
            {"title": say("method.limits.title"), "items": numbered(say, "method.limit.")},
            {"title": say("method.failures.title"), "items": numbered(say, "method.failure.")},
        ],
    }


def numbered(say: Words, prefix: str) -> list[str]:
    return [text for key, text in say.texts.items() if key.startswith(prefix)]


def figures(facts: Facts, say: Words) -> list[dict[str, str]]:
    """The exhibit's pictures, each with what it shows."""
    pictures, measured = facts["pictures"], facts["measured"]
    training, template = facts["training_image"] or {}, facts["template"] or {}
    values = {
        "seed": facts["sampling"]["seed_shown"],
        "image_id": training.get("image_id", ""),
        "template_id": template.get("template_id", ""),
        "members": say.count("image", len(template.get("members", ()))),
        "coverage": share(template.get("coverage", 0.0)),
        "count": say.count("image", len(facts["neighbours"])),
    }
    shown = (
        ("generated", GENERATED, None),
        ("training", TRAINING, None),
        ("one_step", ONE_STEP, None),
        ("template", TEMPLATE, None),
        ("difference", DIFFERENCE, "distance"),
        ("mask", MASK, None),
        ("masked_difference", MASKED_DIFFERENCE, "masked_distance"),
        ("pieces", PIECES, None),
        ("neighbours", NEIGHBOURS, None),
    )
    return [
        {
            "file": file,
            "caption": say(
                f"figure.{name}",
                **values,
                width=pictures[file]["width"],
                height=pictures[file]["height"],
                distance=amount(measured[distance]) if distance else "",
            ),
            "alt": say(f"figure.{name}.alt", **values),
        }
        for name, file, distance in shown
        if file in pictures
    ]


def record(facts: Facts, say: Words) -> list[dict[str, Any]]:
    """The tables at the end: everything of ``exhibit.json`` that a person may want to read."""
    sections = [
        {"title": say("record.caption"), "text": [facts["caption"]["text"], say("record.caption.escaped")]},
        {
            "title": say("record.history"),
            "head": [say("record.when"), say("record.who"), say("record.what")],
            "rows": [
                [
                    moment(event["when"], say),
                    event["who"] or say("history.program"),
                    say(f"history.{event['what']}", label=event["label"]),
                ]
                for event in facts["history"]
            ],
        },
        {
            "title": say("record.checks"),
            "text": [f"{say('record.reason')}: {facts['verdict']['reason']}"],
            "head": [
                say(f"record.{name}")
                for name in ("check", "status", "distance", "limit", "compared_with", "seed", "comparisons")
            ],
            "rows": [
                [
                    check_name(each["kind"], say),
                    status(each["status"], say) + (f", {say('check.holds')}" if each["holds"] else ""),
                    amount(each["distance"])
                    if each["score"] is None
                    else say("record.scored", score=f"{each['score']:.3g}"),
                    amount(each["limit"]),
                    each["image_id"] or "–",
                    shown(each["seed"]),
                    shown(each["looked_at"]),
                ]
                for each in facts["checks"]
            ],
        },
        pairs(
            say("record.denominators"),
            [
                (say(f"denominator.{name}"), f"{facts['denominators'][name]:,}")
                for name in ordered(facts["denominators"], "denominator.", say)
                if facts["denominators"][name] is not None
            ],
        ),
        scores(facts, say),
        parameters(facts, say),
    ]
    if facts["training_image"]:
        sections.append(training_image(facts["training_image"], say))
    if facts["neighbours"]:
        sections.append(neighbours(facts["neighbours"], say))
    hashes = [
        (say(f"hash.{name}"), facts["hashes"][name])
        for name in ordered(facts["hashes"], "hash.", say)
        if facts["hashes"][name]
    ]
    for label in facts["labels"]:
        hashes.append((say("hash.label", who=label["who"]), label["event_sha256"]))
    sections += [
        pairs(say("record.hashes"), hashes, code=True),
        pairs(
            say("record.files"),
            [(name, each["sha256"]) for name, each in sorted(facts["pictures"].items())],
            code=True,
        ),
        pairs(
            say("record.versions"),
            [
                (
                    say(f"versions.{name}"),
                    ", ".join(f"{part} {number}" for part, number in facts["versions"][name].items()),
                )
                for name in ("run", "exhibit")
            ],
        ),
        again(facts, say),
    ]
    return sections


def pairs(title: str, rows: Sequence[tuple[str, str]], *, code: bool = False) -> dict[str, Any]:
    """A table of names and values, without a head."""
    return {"title": title, "rows": [list(row) for row in rows], "code": code}


def scores(facts: Facts, say: Words) -> dict[str, Any]:
    calibration = facts["calibration"]
    thresholds = calibration["thresholds_at_1pct"] if calibration else {}
    note = (
        say(
            "record.calibration",
            captions=say.count("caption", calibration["captions"]),
            source=calibration["source"],
            seeds=", ".join(map(str, calibration["seeds"])),
        )
        if calibration
        else say("record.no_calibration")
    )
    return {
        "title": say("record.scores"),
        "text": [note],
        "head": [say(f"record.{name}") for name in ("score", "value", "percentile", "threshold")],
        "rows": [
            [
                say(f"score.{name}"),
                f"{each['value']:.5g}",
                "–"
                if each["percentile_among_ordinary"] is None
                else f"{each['percentile_among_ordinary']:.1f}%",
                "–" if thresholds.get(name) is None else f"{thresholds[name]:.5g}",
            ]
            for name, each in (
                (name, facts["scores"][name]) for name in ordered(facts["scores"], "score.", say)
            )
        ],
    }


def parameters(facts: Facts, say: Words) -> dict[str, Any]:
    model, sampling = facts["model"], facts["sampling"]
    values = {
        "model": model["name"],
        "prediction": model["prediction"],
        "sigma_max": None if model["sigma_max"] is None else f"{model['sigma_max']:.6g}",
        "device": f"{model['device']}, {model['dtype']}",
        "noise": model["noise"],
        "guidance": shown(sampling["guidance"]),
        "steps": shown(sampling["steps"]),
        "seeds": ", ".join(map(str, sampling["seeds"])),
        "one_step_seeds": ", ".join(map(str, sampling["one_step_seeds"])),
        "method": say(f"sampler.{sampling['method']}"),
        "search": facts["versions"]["search"],
        "rule": facts["verdict"]["rule"],
        "template": facts["verdict"]["template_id"],
    }
    rows = [(say(f"parameter.{name}"), str(value)) for name, value in values.items() if value]
    return pairs(say("record.parameters"), rows)


def training_image(training: Facts, say: Words) -> dict[str, Any]:
    names = ("image_id", "caption", "title", "author", "licence", "source", "url", "sha256")
    rows = [(say(f"training.{name}"), training[name]) for name in names if training[name]]
    if training["equal_files"]:
        rows.append((say("training.equal_files"), ", ".join(training["equal_files"])))
    return pairs(say("record.training"), rows)


def neighbours(found: Sequence[Facts], say: Words) -> dict[str, Any]:
    return {
        "title": say("record.neighbours"),
        "text": [say("record.neighbours.note")],
        "head": [
            "",
            *(say(f"record.{name}") for name in ("image", "similarity", "distance")),
            say("record.credit"),
        ],
        "rows": [
            [
                str(place),
                each["image_id"],
                f"{each['similarity']:.3f}",
                amount(each["sse"]),
                cut(
                    "; ".join(
                        part for part in (each["caption"], each.get("author"), each.get("licence")) if part
                    ),
                    LONGEST_CELL,
                ),
            ]
            for place, each in enumerate(found, start=1)
        ],
    }


def again(facts: Facts, say: Words) -> dict[str, Any]:
    tolerance = facts["tolerance"]
    here = kind_of(facts["model"]["device"], facts["model"]["dtype"])
    note = say(
        "again.tolerance",
        tolerance=amount(tolerance.get(here, tolerance["other"])["generated"]),
        device=here,
        other=amount(tolerance["other"]["generated"]),
        one_step=amount(tolerance["other"]["one_step"]),
    )
    rows = [[say(f"again.{name}"), facts["again"][name]] for name in ordered(facts["again"], "again.", say)]
    return {"title": say("record.again"), "text": [note], "rows": rows, "code": True}


def ordered(content: Mapping[str, Any], prefix: str, say: Words) -> list[str]:
    """The names in `content` for which there is a text, in the order of the texts."""
    names = (key.removeprefix(prefix) for key in say.texts if key.startswith(prefix))
    return [name for name in names if name in content]


def check_name(kind: str, say: Words) -> str:
    return say(f"check.{kind}") if f"check.{kind}" in say else kind


def status(name: str | None, say: Words) -> str:
    """What became of a check; a later version may have another word for it."""
    return say(f"status.{name}") if f"status.{name}" in say else name or "–"


def moment(when: str | None, say: Words) -> str:
    """A time as people write it, to the second; the record in ``exhibit.json`` has all of it."""
    return when[:19].replace("T", " ") if when else say("history.no_time")


def shown(value: float | None) -> str:
    return "–" if value is None else f"{value:,}"


def cut(text: str, longest: int) -> str:
    """A text on one line, cut where it is too long to stand among others."""
    line = " ".join(text.split())
    return line if len(line) <= longest else line[: longest - 1].rstrip() + "…"
