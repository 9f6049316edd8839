"""How findings, mends and rows look on the page Dataset: words, marks, and nothing that a person typed as HTML."""

from __future__ import annotations

import html
import re

import pytest

from app.dataset.mends import APPLY, TRY, findings_html, mends_html, ref_of, trial_html
from app.preflight import preview_html
from jobs.data.mends import MendPreview, MendRef, Sample, all_mends
from jobs.errors import UserError
from jobs.service.datasets import Finding, RowPreview, Segment

EVIL = "<b>${1}"


def actions(text: str) -> list[str]:
    return [html.unescape(found) for found in re.findall(r'data-action="([^"]*)"', text)]


def test_a_finding_has_its_rows_and_the_mend_that_helps() -> None:
    ref = MendRef(name="cut_special", params={"tokens": [EVIL]})
    finding = Finding(kind="x", severity="warn", words=f"2 rows hold {EVIL}.", count=12, rows=(3, 9), mend=ref)
    shown = findings_html([finding], {"cut_special": "Cut special tokens"})
    assert EVIL not in shown and "and 10 more" in shown and "Cut special tokens" in shown
    look, other, mend = actions(shown)
    assert (look, other) == ("look", "look") and ref_of(mend) == (TRY, ref)
    assert findings_html([], {}) == ""
    with pytest.raises(UserError, match="That button is unknown"):
        ref_of("try nonsense")


def test_before_and_after_stand_side_by_side_with_what_differs_marked() -> None:
    turns = [{"role": "user", "content": "a <| b"}, {"role": "user", "content": "c"}]
    merged = [{"role": "user", "content": "a <| b\n\nc"}]
    seen = MendPreview(
        changed=1,
        dropped=7,
        samples=(
            Sample(row=4, before={"messages": turns}, after={"messages": merged}),
            Sample(row=5, before={"messages": turns}, after=None),
            Sample(row=6, before=None, after=None),
        ),
    )
    ref = MendRef(name="merge_turns")
    shown = trial_html(all_mends()["merge_turns"], "Merge", ref, seen)
    assert "1 row is changed, 7 rows are left out." in shown
    assert "<del>user: </del>" in shown and "<ins>↵\n</ins>" in shown
    assert shown.count("left out</span>") == 2 and "cannot be read" in shown and "and 5 rows more" in shown
    assert ref_of(actions(shown)[0]) == (APPLY, ref)
    nothing = trial_html(all_mends()["trim"], "Trim", ref, MendPreview(changed=0, dropped=0, samples=()))
    assert "would change nothing" in nothing and actions(nothing) == ["dismiss"]


def test_applied_mends_can_be_undone_and_others_tried() -> None:
    ref = MendRef(name="trim")
    shown = mends_html([(ref, "Trim white space")], [all_mends()["drop_bad"]])
    assert [ref_of(action) for action in actions(shown)] == [("undo", ref), (TRY, MendRef(name="drop_bad"))]


def row(*segments: Segment, **more: object) -> RowPreview:
    given = {"row": 1, "tokens": 3, "trained_tokens": 1, "cut_tokens": 0, "problem": None, "raw": ""} | more
    return RowPreview(segments=segments, **given)  # type: ignore[arg-type]


def test_tagged_words_are_coloured_to_their_end() -> None:
    shown = preview_html(
        row(
            Segment(text="Ad", kind="trained", tag="B-PER"),
            Segment(text="a", kind="context"),
            Segment(text=" ran", kind="trained", tag="O"),
            Segment(text=" to", kind="context"),
            Segment(text=" Rome", kind="trained", tag="B-LOC"),
        )
    )
    coloured = re.findall(r'class="context( tagged-token tag-\d)?" title="token \d', shown)
    assert coloured == [" tagged-token tag-0", " tagged-token tag-0", "", "", " tagged-token tag-1"]
    assert shown.index("PER</li>") < shown.index("LOC</li>")


def test_a_pair_stands_side_by_side_and_a_target_is_named() -> None:
    better, worse = Segment(text="good", kind="trained"), Segment(text="bad", kind="trained")
    assert re.search(r"Better answer.*good.*Worse answer.*bad", preview_html(row(better, second=(worse,))), re.DOTALL)
    source = Segment(text="good", kind="context")
    assert "Source" in preview_html(row(source, second=(worse,), trained_tokens=1))
    assert "Learns" in preview_html(row(source, target=EVIL)) and EVIL not in preview_html(row(source, target=EVIL))
    assert "plain text" in preview_html(row(source, notes=("It is written as plain text.",)))
