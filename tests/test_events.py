"""The run contract's small files: events appended and tailed, results and folders written whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.events import Answers, EventLog, Metrics, Phase, PromptAnswer, read_events
from jobs.files import whole_folder, write_whole
from jobs.result import Result


def test_events_come_back_as_they_were_told(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    told = [
        Phase(text="Loading “Tiny”\nand more"),
        Metrics(step=1, values={"loss": 1.5}, eta_seconds=3.0),
        Answers(step=1, answers=(PromptAnswer(prompt="p", base="b", tuned="t"),)),
    ]
    for event in told:
        log.append(event)
    assert read_events(tmp_path / "events.jsonl", 0)[0] == told


def test_a_tail_waits_for_the_end_of_a_line_and_goes_on_from_its_offset(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    assert read_events(path, 0) == ([], 0)
    first, second = Phase(text="one"), Phase(text="two")
    line = second.model_dump_json().encode()
    path.write_bytes(first.model_dump_json().encode() + b"\n" + line[:10])
    seen, offset = read_events(path, 0)
    assert seen == [first]
    assert read_events(path, offset) == ([], offset)
    with path.open("ab") as file:
        file.write(line[10:] + b"\n")
    assert read_events(path, offset) == ([second], path.stat().st_size)


def test_a_line_that_is_no_event_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"type":"metr\n{"type":"unheard"}\n' + Phase(text="on").model_dump_json() + "\n")
    seen, offset = read_events(path, 0)
    assert [event.text for event in seen if isinstance(event, Phase)] == ["on"]
    assert offset == path.stat().st_size


def test_a_loss_that_is_not_finite_can_still_be_told(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.append(Metrics(step=1, values={"loss": float("inf")}))
    log.append(Phase(text="after"))
    assert [event.type for event in read_events(tmp_path / "events.jsonl", 0)[0]][-1] == "phase"


def test_many_events_are_read_in_pieces(tmp_path: Path) -> None:
    log, path = EventLog(tmp_path / "events.jsonl"), tmp_path / "events.jsonl"
    for step in range(100):
        log.append(Metrics(step=step, values={"loss": 1.0}))
    steps, offset = [], 0
    while True:
        seen, offset_after = read_events(path, offset, limit=500)
        if not seen:
            break
        steps += [event.step for event in seen if isinstance(event, Metrics)]
        offset = offset_after
    assert steps == list(range(100))


def test_results_survive_their_round_trip() -> None:
    end = Result(state="stopped", reason="Stopped on request after step 3.", step=3, adapter_step=3, seconds=1.5)
    assert Result.model_validate_json(end.model_dump_json()) == end


def test_a_file_is_replaced_whole_and_leaves_no_scrap(tmp_path: Path) -> None:
    write_whole(tmp_path / "a.json", "old")
    write_whole(tmp_path / "a.json", "new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.json", "new")]


def test_a_folder_appears_when_it_is_complete_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "adapter"
    with whole_folder(target) as folder:
        (folder / "weights").write_text("1")
        assert not target.exists()
    with pytest.raises(RuntimeError), whole_folder(target) as folder:
        (folder / "weights").write_text("half")
        raise RuntimeError
    assert (target / "weights").read_text() == "1"
    with whole_folder(target) as folder:
        (folder / "other").write_text("2")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    assert [path.name for path in target.iterdir()] == ["other"]
