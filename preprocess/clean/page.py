"""The page of doubtful pairs: each with both crops, so that a person can judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from preprocess.clean import find
from preprocess.clean.find import Verdict
from preprocess.pages import crop_address, render

MAX_PAIRS = 60
"""Of a reason that are shown, the most doubtful first; verdicts.parquet has all."""

_OF_TEST_SET = {find.IN_TEST_SET, find.NEAR_TEST_SET, find.NAME_IN_TEST_SET}
_BY_COSINE = {find.LIKE_OTHER, find.FAR, find.LOOK_ALIKE}

_TEXTS = {
    find.EXACT: ("The same photo twice", "One file, one person: the first stays."),
    find.EXACT_OF_OTHER: (
        "One photo, two people",
        "The same file under two names. One label is wrong; all are dropped.",
    ),
    find.NEAR: (
        "Near duplicates",
        "Two versions of one photo of a person, by the perceptual hash and the pixels: the first stays.",
    ),
    find.NEAR_OF_OTHER: (
        "Near duplicates, two people",
        "Two versions of one photo, by the perceptual hash and the pixels, under two names: one may be wrong.",
    ),
    find.IN_TEST_SET: ("In the test set", "The same file is in the test set."),
    find.NEAR_TEST_SET: (
        "Near duplicates in the test set",
        "The test set has a version of the photo, by the perceptual hash and the pixels.",
    ),
    find.NAME_IN_TEST_SET: ("Names of the test set", "A person of this name is in the test set."),
    find.LIKE_OTHER: ("More like somebody else", "Left the photo, right the person it is more like than its own."),
    find.FAR: ("Far from their person", "Left the photo, right the most typical photo of its person."),
    find.LOOK_ALIKE: (
        "People who look like one",
        "Each person's photos pass as the other's: perhaps one with two names.",
    ),
}

_TEMPLATE = """
<h1>Doubtful photos of {{ data }}</h1>
<p class="soft">{{ num_photos }} photos, digest <code>{{ digest }}</code>. Nothing was deleted:
<code>drop</code> is what <code>--apply</code> leaves out, <code>review</code> is for you to judge.</p>
{% if num_unreadable %}
<p class="warn">{{ num_unreadable }} of the crops below cannot be read; <code>preprocess verify</code> names them.</p>
{% endif %}
{% if not groups %}<p>No doubtful photo was found.</p>{% endif %}
{% if groups %}
<table><tr><th>reason</th><th class="number">drop</th><th class="number">review</th></tr>
{% for group in groups %}
<tr><td><a href="#{{ group.reason }}">{{ group.title }}</a> <code class="soft">{{ group.reason }}</code></td>
<td class="number">{{ "{:,}".format(group.num_drop) }}</td>
<td class="number">{{ "{:,}".format(group.num_review) }}</td></tr>
{% endfor %}
</table>
{% endif %}
{% for group in groups %}
<h2 id="{{ group.reason }}">{{ group.title }}</h2>
<p class="soft">{{ group.text }}{% if group.num_hidden %} {{ "{:,}".format(group.num_hidden) }} more are in
verdicts.parquet.{% endif %}</p>
<div class="grid">
{% for pair in group.pairs %}
<div class="card"><div class="pair">
{% for side in pair.sides %}
<figure style="margin:0">{% if side.image %}<img src="{{ side.image }}" alt="{{ side.identity }}">{% else %}
<p class="warn">crop unreadable</p>{% endif %}
<figcaption><b>{{ side.identity }}</b><br>{{ side.source }}<br>key {{ side.key }}</figcaption></figure>
{% endfor %}
</div><figcaption>{{ pair.verdict }} · {{ pair.score }}</figcaption></div>
{% endfor %}
</div>
{% endfor %}
"""


@dataclass(frozen=True)
class Source:
    """A data set whose photos are shown."""

    data: Path
    photos: pa.Table
    """From `find.read_photos`."""


def render_page(own: Source, test: Source | None, verdicts: Sequence[Verdict], digest: str) -> bytes:
    """The page, with all its pictures.

    Args:
        own: the data set that was judged.
        test: the test set it was compared with.
        verdicts: all of them.
        digest: of the data set.
    """
    groups = []
    unreadable: set[tuple[Path, str]] = set()
    for reason, (title, text) in _TEXTS.items():
        members = [verdict for verdict in verdicts if verdict.reason == reason]
        if not members:
            continue
        # few bits or a low cosine are the most doubtful; of look-alikes a high one
        members.sort(key=lambda verdict: (verdict.score * (-1 if reason == find.LOOK_ALIKE else 1), verdict.key))
        shown = members[:MAX_PAIRS]
        left = _facts(own, [verdict.key for verdict in shown])
        others = test if test and reason in _OF_TEST_SET else own
        right = _facts(others, [verdict.other_key for verdict in shown])
        for source, facts in ((own, left), (others, right)):
            unreadable |= {(source.data, key) for key, side in facts.items() if not side["image"]}
        groups.append(
            {
                "reason": reason,
                "title": title,
                "text": text,
                "num_drop": sum(verdict.verdict == find.DROP for verdict in members),
                "num_review": sum(verdict.verdict == find.REVIEW for verdict in members),
                "num_hidden": len(members) - len(shown),
                "pairs": [
                    {
                        "sides": [left[verdict.key], right[verdict.other_key]],
                        "verdict": verdict.verdict,
                        "score": _score(verdict),
                    }
                    for verdict in shown
                ],
            }
        )
    return render(
        _TEMPLATE,
        f"Doubtful photos of {own.data.name}",
        data=own.data.name,
        num_photos=f"{len(own.photos):,}",
        digest=digest[:16],
        num_unreadable=len(unreadable),
        groups=groups,
    )


def _facts(source: Source, keys: Sequence[str]) -> dict[str, dict[str, Any]]:
    rows = source.photos.filter(pc.is_in(source.photos["key"], pa.array(sorted(set(keys)), pa.string())))
    return {row["key"]: row | {"image": crop_address(source.data, row)} for row in rows.to_pylist()}


def _score(verdict: Verdict) -> str:
    if verdict.reason in _BY_COSINE:
        return f"cosine {verdict.score:.2f}"
    return "by name" if verdict.reason == find.NAME_IN_TEST_SET else f"{verdict.score:.0f} bits differ"
